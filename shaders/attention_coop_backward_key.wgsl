// attention_coop_backward_key.wgsl: dk = sum over queries of dS q, dv = sum over queries of (dropout factor * P) dout; P and dS as in
// attention_coop_backward_query.wgsl, which must run before and leaves `stats` and `masks`. One workgroup per head and ROWS keys, see
// common/attention_coop.wgsl; here tiles are of queries, the products of scores have a row per query and a column per own key, and go into
// the sums transposed. Weights are at most the dropout factor (128, see there), give or take what P is rounded. Bounds as in
// attention_coop.wgsl, with keys and queries exchanged; rows of stats and masks are clamped.
#import attention_coop
@group(0) @binding(1) var<storage, read> qkv: array<vec4<Elem>>;
@group(0) @binding(2) var<storage, read> dout: array<vec4<Elem>>;
@group(0) @binding(3) var<storage, read> stats: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read_write> dqkv: array<vec4<Elem>>;
#if DROPOUT
@group(0) @binding(5) var<storage, read> masks: array<u32>;
#endif

const W_SECOND: u32 = SUBGROUPS * W_SIZE;
var<workgroup> weights: array<vec4<f16>, 2u * SUBGROUPS * W_SIZE>;       // P with dropout, then dS

fn fetch_dout(head: Head, t: u32, i: u32) -> vec4<f16> {
    let value = dout[out_index(head.b, min(t, params.seq - 1u), head.h) + i];
    return select(vec4<f16>(), value, t < params.seq);
}

@compute @workgroup_size(WG_SIZE)
fn main(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
#import attention_coop_begin TURN=(id/heads)
    let column = side * 2u;   // `row` is here that of a query in a tile

#for i 0 GROUPS
    workgroupBarrier();
    weights[w_base + (lane / 4u) * W_STRIDE + lane % 4u] = fetch(head, 1u, own + lane / 4u, 4u * {i}u + lane % 4u);
    weights[w_base + (lane / 4u + 8u) * W_STRIDE + lane % 4u] = fetch(head, 1u, own + lane / 4u + 8u, 4u * {i}u + lane % 4u);
    weights[W_SECOND + w_base + (lane / 4u) * W_STRIDE + lane % 4u] = fetch(head, 2u, own + lane / 4u, 4u * {i}u + lane % 4u);
    weights[W_SECOND + w_base + (lane / 4u + 8u) * W_STRIDE + lane % 4u] = fetch(head, 2u, own + lane / 4u + 8u, 4u * {i}u + lane % 4u);
    workgroupBarrier();
    let k{i} = coopLoad<coop_mat16x16<f16, B>>(&weights[w_base], W_STRIDE);
    let v{i} = coopLoad<coop_mat16x16<f16, B>>(&weights[W_SECOND + w_base], W_STRIDE);
    var dk{i} = coop_mat16x16<f32, C>();
    var dv{i} = coop_mat16x16<f32, C>();
#endfor
    let scale2 = params.scale * LOG2E;
    let k = vec4<u32>(0u, 1u, 2u, 3u) + (own + 4u * column);
    let begin = select(0u, block, params.causal != 0u);
#if DROPOUT
    let mask_row = (params.seq + 15u) / 16u;
    let mask_column = min(own / 16u, mask_row - 1u);
#endif
    let unit_row = index / D4;
    let unit = index % D4;
#for u 0 UNITS
    tile_a[(unit_row + {u}u * PACE) * STRIDE + unit] = fetch(head, 0u, begin + unit_row + {u}u * PACE, unit);
    tile_b[(unit_row + {u}u * PACE) * STRIDE + unit] = fetch_dout(head, begin + unit_row + {u}u * PACE, unit);
#endfor
    for (var first = begin; first < params.seq; first += TILE) {
        let ahead = min(first + TILE, params.seq - 1u) + unit_row;
#for u 0 UNITS
        let a{u} = fetch(head, 0u, ahead + {u}u * PACE, unit);
        let b{u} = fetch_dout(head, ahead + {u}u * PACE, unit);
#endfor
        let t = first + row;
        let safe = bh * params.seq + min(t, params.seq - 1u);
        let stat = stats[safe];
#if DROPOUT
        let kept = masks[safe * mask_row + mask_column] >> (4u * column);
#endif
        workgroupBarrier();
        var s = coop_mat16x16<f32, C>();
        var d = coop_mat16x16<f32, C>();
#for i 0 GROUPS
        s = coopMultiplyAdd(coopLoadT<coop_mat16x16<f16, A>>(&tile_a[4u * {i}u], STRIDE), k{i}, s);
        d = coopMultiplyAdd(coopLoadT<coop_mat16x16<f16, A>>(&tile_b[4u * {i}u], STRIDE), v{i}, d);
#endfor
        {
            let done = s;
            coopStoreT(done, &scores[s_base], S_STRIDE);
        }
        workgroupBarrier();
        let limit = select(0u, visible(t), t < params.seq);
#for j 0 2
        let p{j} = select(vec4<f32>(), exp2(scores[s_at + {j}u] * scale2 - stat.x), k + 4u * {j}u < vec4<u32>(limit));
#endfor
        workgroupBarrier();
        {
            let done = d;
            coopStoreT(done, &scores[s_base], S_STRIDE);
        }
        workgroupBarrier();
#for j 0 2
        {
            let dp = scores[s_at + {j}u];
#if DROPOUT
            let bits = (vec4<u32>(kept >> (4u * {j}u)) & vec4<u32>(1u, 2u, 4u, 8u)) != vec4<u32>();
            let factor = select(vec4<f32>(), vec4<f32>(params.drop_scale), bits);
            weights[w_at + {j}u] = vec4<f16>(p{j} * factor);
            weights[W_SECOND + w_at + {j}u] = vec4<f16>(p{j} * (dp * factor - stat.y) * params.scale);
#else
            weights[w_at + {j}u] = vec4<f16>(p{j});
            weights[W_SECOND + w_at + {j}u] = vec4<f16>(p{j} * (dp - stat.y) * params.scale);
#endif
        }
#endfor
        workgroupBarrier();
        {
            let p = coopLoad<coop_mat16x16<f16, A>>(&weights[w_base], W_STRIDE);
            let ds = coopLoad<coop_mat16x16<f16, A>>(&weights[W_SECOND + w_base], W_STRIDE);
#for i 0 GROUPS
            dv{i} = coopMultiplyAdd(p, coopLoadT<coop_mat16x16<f16, B>>(&tile_b[4u * {i}u], STRIDE), dv{i});
            dk{i} = coopMultiplyAdd(ds, coopLoadT<coop_mat16x16<f16, B>>(&tile_a[4u * {i}u], STRIDE), dk{i});
#endfor
        }
        workgroupBarrier();
#for u 0 UNITS
        tile_a[(unit_row + {u}u * PACE) * STRIDE + unit] = a{u};
        tile_b[(unit_row + {u}u * PACE) * STRIDE + unit] = b{u};
#endfor
    }
#for i 0 GROUPS
#import attention_coop_gradient SUM=dk{i} PART=1u I={i}
#import attention_coop_gradient SUM=dv{i} PART=2u I={i}
#endfor
}
