/* The parameter table: names, order, shapes, look-up. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "runtime/model/params.h"

static struct ps_model_config config(void)
{
    return (struct ps_model_config){.hidden_size = 12,
                                    .intermediate_size = 20,
                                    .n_layer = 3,
                                    .n_head = 4,
                                    .n_kv_head = 2,
                                    .head_dim = 5,
                                    .vocab_size = 31};
}

static void check(const struct ps_param_table *t, size_t idx, const char *name, int64_t rows,
                  int64_t cols)
{
    assert_true(idx < t->count);
    const struct ps_param_info *p = &t->param[idx];
    assert_string_equal(p->name, name);
    assert_int_equal(p->rank, cols ? 2 : 1);
    assert_int_equal(p->shape[0], rows);
    if (cols)
        assert_int_equal(p->shape[1], cols);
    assert_int_equal(p->elements, rows * (cols ? cols : 1));
    assert_int_equal(p->decay, cols != 0);
}

static void plain_model_has_nine_tensors_a_layer_in_order(void **state)
{
    (void)state;
    struct ps_model_config cfg = config();
    struct ps_param_table t;
    assert_int_equal(ps_param_table_create(&t, &cfg), 0);
    assert_int_equal(t.count, 3 + 3 * 9);
    check(&t, 0, "model.embed_tokens.weight", 31, 12);
    check(&t, 1, "model.layers.0.input_layernorm.weight", 12, 0);
    check(&t, 2, "model.layers.0.self_attn.q_proj.weight", 20, 12);
    check(&t, 3, "model.layers.0.self_attn.k_proj.weight", 10, 12);
    check(&t, 4, "model.layers.0.self_attn.v_proj.weight", 10, 12);
    check(&t, 5, "model.layers.0.self_attn.o_proj.weight", 12, 20);
    check(&t, 6, "model.layers.0.post_attention_layernorm.weight", 12, 0);
    check(&t, 7, "model.layers.0.mlp.gate_proj.weight", 20, 12);
    check(&t, 8, "model.layers.0.mlp.up_proj.weight", 20, 12);
    check(&t, 9, "model.layers.0.mlp.down_proj.weight", 12, 20);
    check(&t, 10, "model.layers.1.input_layernorm.weight", 12, 0);
    check(&t, 28, "model.norm.weight", 12, 0);
    check(&t, 29, "lm_head.weight", 31, 12);
    size_t sum = 0;
    for (size_t i = 0; i < t.count; i++)
        sum += t.param[i].elements;
    assert_int_equal(t.elements, sum);
    assert_int_equal(t.param[0].tied_group, 0);
    assert_int_equal(t.param[2].head_count, 4);
    assert_int_equal(t.param[3].head_count, 2);
    assert_int_equal(t.param[4].head_count, 2);
    assert_int_equal(t.param[5].head_count, 4);
    assert_int_equal(t.param[7].head_count, 0);
    ps_param_table_fini(&t);
}

static void biases_and_head_norms_are_there_exactly_when_asked_for(void **state)
{
    (void)state;
    for (int m = 0; m < 16; m++) {
        struct ps_model_config cfg = config();
        cfg.qkv_bias = m & 1;
        cfg.o_bias = m & 2;
        cfg.mlp_bias = m & 4;
        cfg.qk_norm = m & 8;
        struct ps_param_table t;
        assert_int_equal(ps_param_table_create(&t, &cfg), 0);
        size_t extra = (m & 1 ? 3u : 0) + (m & 2 ? 1u : 0) + (m & 4 ? 3u : 0) + (m & 8 ? 2u : 0);
        assert_int_equal(t.count, 3 + 3 * (9 + extra));
        for (int32_t l = 0; l < 3; l++)
            for (int r = 0; r < PS_ROLE_LAYER_COUNT; r++) {
                int32_t i = ps_param_find(&t, l, (enum ps_role)r);
                if (i < 0)
                    continue;
                assert_int_equal(t.param[i].layer, l);
                assert_int_equal(t.param[i].role, r);
                if (l == 0 && r == PS_ROLE_K_BIAS)
                    check(&t, (size_t)i, "model.layers.0.self_attn.k_proj.bias", 10, 0);
                if (l == 0 && r == PS_ROLE_O_BIAS)
                    check(&t, (size_t)i, "model.layers.0.self_attn.o_proj.bias", 12, 0);
                if (l == 0 && r == PS_ROLE_UP_BIAS)
                    check(&t, (size_t)i, "model.layers.0.mlp.up_proj.bias", 20, 0);
                if (l == 0 && r == PS_ROLE_Q_NORM)
                    check(&t, (size_t)i, "model.layers.0.self_attn.q_norm.weight", 5, 0);
            }
        assert_int_equal(ps_param_find(&t, 0, PS_ROLE_Q_BIAS) >= 0, cfg.qkv_bias);
        assert_int_equal(ps_param_find(&t, 1, PS_ROLE_O_BIAS) >= 0, cfg.o_bias);
        assert_int_equal(ps_param_find(&t, 2, PS_ROLE_DOWN_BIAS) >= 0, cfg.mlp_bias);
        assert_int_equal(ps_param_find(&t, 0, PS_ROLE_K_NORM) >= 0, cfg.qk_norm);
        ps_param_table_fini(&t);
    }
}

static void a_tied_head_is_the_embedding(void **state)
{
    (void)state;
    struct ps_model_config cfg = config();
    cfg.tie_word_embeddings = true;
    struct ps_param_table t;
    assert_int_equal(ps_param_table_create(&t, &cfg), 0);
    assert_int_equal(t.count, 2 + 3 * 9);
    assert_int_equal(ps_param_find(&t, -1, PS_ROLE_HEAD), 0);
    assert_int_equal(ps_param_find(&t, -1, PS_ROLE_EMBED), 0);
    assert_int_equal(ps_param_find(&t, -1, PS_ROLE_FINAL_NORM), t.count - 1);
    assert_int_equal(t.param[0].tied_group, 1);
    ps_param_table_fini(&t);
    assert_int_equal(t.count, 0);
}

static void linears_have_names_parents_and_shapes(void **state)
{
    (void)state;
    struct ps_model_config cfg = config();
    static const struct {
        const char *name, *parent;
        int64_t out, in;
    } want[PS_LINEAR_COUNT] = {
        {"q_proj", "self_attn", 20, 12}, {"k_proj", "self_attn", 10, 12},
        {"v_proj", "self_attn", 10, 12}, {"o_proj", "self_attn", 12, 20},
        {"gate_proj", "mlp", 20, 12},    {"up_proj", "mlp", 20, 12},
        {"down_proj", "mlp", 12, 20},
    };
    for (int i = 0; i < PS_LINEAR_COUNT; i++) {
        int64_t out;
        int64_t in;
        ps_linear_shape(&cfg, (enum ps_role)i, &out, &in);
        assert_int_equal(out, want[i].out);
        assert_int_equal(in, want[i].in);
        assert_string_equal(ps_linear_name((enum ps_role)i), want[i].name);
        assert_string_equal(ps_linear_parent((enum ps_role)i), want[i].parent);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_model_has_nine_tensors_a_layer_in_order),
        cmocka_unit_test(biases_and_head_norms_are_there_exactly_when_asked_for),
        cmocka_unit_test(a_tied_head_is_the_embedding),
        cmocka_unit_test(linears_have_names_parents_and_shapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
