// attention_coop_backward_query.wgsl: dq = sum over keys of dS k, where P = exp(scores - lse), dP = dropout factor * (dout . v),
// dS = scale * P (dP - delta), delta = dout . out. Also leaves (lse * log2 e, delta) in `stats` and, with dropout, which keys are kept in
// `masks`, for the pass over keys, which must follow. One workgroup per head and ROWS queries, see common/attention_coop.wgsl and
// attention_coop.wgsl, also for the bounds. dS is scaled before it is rounded to f16, so that no sum of it is larger than a gradient.
#import attention_coop
@group(0) @binding(1) var<storage, read> qkv: array<vec4<Elem>>;
@group(0) @binding(2) var<storage, read> out: array<vec4<Elem>>;
@group(0) @binding(3) var<storage, read> dout: array<vec4<Elem>>;
@group(0) @binding(4) var<storage, read> lse: array<f32>;
@group(0) @binding(5) var<storage, read_write> dqkv: array<vec4<Elem>>;
@group(0) @binding(6) var<storage, read_write> stats: array<vec2<f32>>;  // [batch, heads, seq]
#if DROPOUT
@group(0) @binding(7) var<storage, read_write> masks: array<u32>;        // [batch, heads, seq, keys / 16]: a bit per key that is kept
@group(0) @binding(8) var<storage, read> state: StepState;
#endif

var<workgroup> weights: array<vec4<f16>, SUBGROUPS * W_SIZE>;

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
#import attention_coop_begin TURN=(blocks-1u-id/heads)
    let t = own + row;

#for i 0 GROUPS
    workgroupBarrier();
    weights[w_base + (lane / 4u) * W_STRIDE + lane % 4u] = fetch(head, 0u, own + lane / 4u, 4u * {i}u + lane % 4u);
    weights[w_base + (lane / 4u + 8u) * W_STRIDE + lane % 4u] = fetch(head, 0u, own + lane / 4u + 8u, 4u * {i}u + lane % 4u);
    workgroupBarrier();
    let q{i} = coopLoadT<coop_mat16x16<f16, A>>(&weights[w_base], W_STRIDE);
    workgroupBarrier();
    weights[w_base + (lane / 4u) * W_STRIDE + lane % 4u] = fetch_dout(head, own + lane / 4u, 4u * {i}u + lane % 4u);
    weights[w_base + (lane / 4u + 8u) * W_STRIDE + lane % 4u] = fetch_dout(head, own + lane / 4u + 8u, 4u * {i}u + lane % 4u);
    workgroupBarrier();
    let g{i} = coopLoadT<coop_mat16x16<f16, A>>(&weights[w_base], W_STRIDE);
    var dq{i} = coop_mat16x16<f32, C>();
#endfor

    // Two invocations per row add up delta.
    let safe = min(t, params.seq - 1u);
    let o_base = out_index(head.b, safe, head.h) + side * (D4 / 2u);
    var part = vec4<f32>();
    for (var i = 0u; i < D4 / 2u; i++) { part += vec4<f32>(dout[o_base + i]) * vec4<f32>(out[o_base + i]); }
    var delta = (part.x + part.y) + (part.z + part.w);
    delta += subgroupShuffleXor(delta, 1u);
    let lse2 = lse[bh * params.seq + safe] * LOG2E;
    if side == 0u && t < params.seq { stats[bh * params.seq + t] = vec2<f32>(lse2, delta); }

    let scale2 = params.scale * LOG2E;
    let limit = visible(t);
    let own_end = visible(own + 15u);
    let end = select(params.seq, min(block + ROWS, params.seq), params.causal != 0u);
#if DROPOUT
    let step = state.step;
    let mask_base = (bh * params.seq + safe) * ((params.seq + 15u) / 16u);
#endif
    let unit_row = index / D4;
    let unit = index % D4;
#for u 0 UNITS
    tile_a[(unit_row + {u}u * PACE) * STRIDE + unit] = fetch(head, 1u, unit_row + {u}u * PACE, unit);
    tile_b[(unit_row + {u}u * PACE) * STRIDE + unit] = fetch(head, 2u, unit_row + {u}u * PACE, unit);
#endfor
    for (var first = 0u; first < end; first += TILE) {
        let ahead = min(first + TILE, end - 1u) + unit_row;
#for u 0 UNITS
        let a{u} = fetch(head, 1u, ahead + {u}u * PACE, unit);
        let b{u} = fetch(head, 2u, ahead + {u}u * PACE, unit);
#endfor
        workgroupBarrier();
        var s = coop_mat16x16<f32, C>();
        var d = coop_mat16x16<f32, C>();
#for i 0 GROUPS
        s = coopMultiplyAdd(q{i}, coopLoad<coop_mat16x16<f16, B>>(&tile_a[4u * {i}u], STRIDE), s);
        d = coopMultiplyAdd(g{i}, coopLoad<coop_mat16x16<f16, B>>(&tile_b[4u * {i}u], STRIDE), d);
#endfor
        {
            let done = s;
            coopStoreT(done, &scores[s_base], S_STRIDE);
        }
        workgroupBarrier();
        let k = vec4<u32>(0u, 1u, 2u, 3u) + (first + 4u * side * 2u);
#for j 0 2
        let p{j} = select(vec4<f32>(), exp2(scores[s_at + {j}u] * scale2 - lse2), k + 4u * {j}u < vec4<u32>(limit));
#endfor
        workgroupBarrier();
        {
            let done = d;
            coopStoreT(done, &scores[s_base], S_STRIDE);
        }
        workgroupBarrier();
        var kept = 0u;
        if first < own_end {
#for j 0 2
            {
                var dp = scores[s_at + {j}u];
#if DROPOUT
                let factor = factors_wide(bh, t, k.x / 4u + {j}u, step);
                dp *= factor;
                let bits = select(vec4<u32>(), vec4<u32>(1u, 2u, 4u, 8u), factor != vec4<f32>());
                kept |= (bits.x | bits.y | bits.z | bits.w) << (4u * {j}u);
#endif
                weights[w_at + {j}u] = vec4<f16>(p{j} * (dp - delta) * params.scale);
            }
#endfor
        } else {
#for j 0 2
            weights[w_at + {j}u] = vec4<f16>();
#endfor
        }
#if DROPOUT
        kept <<= 8u * side;
        kept |= subgroupShuffleXor(kept, 1u);
        if first < own_end && t < params.seq && k.x < params.seq { masks[mask_base + k.x / 16u] = kept; }
#endif
        workgroupBarrier();
        {
            let ds = coopLoadT<coop_mat16x16<f16, A>>(&weights[w_base], W_STRIDE);
#for i 0 GROUPS
            dq{i} = coopMultiplyAdd(ds, coopLoadT<coop_mat16x16<f16, B>>(&tile_a[4u * {i}u], STRIDE), dq{i});
#endfor
        }
        workgroupBarrier();
#for u 0 UNITS
        tile_a[(unit_row + {u}u * PACE) * STRIDE + unit] = a{u};
        tile_b[(unit_row + {u}u * PACE) * STRIDE + unit] = b{u};
#endfor
    }
#for i 0 GROUPS
#import attention_coop_gradient SUM=dq{i} PART=0u I={i}
#endfor
}
