// attention_coop.wgsl: out = dropout(softmax(q k^T * scale)) v and the log-sum-exp, per head, on cooperative matrices: f16 operands, f32 sums.
// One workgroup per head and ROWS queries, see common/attention_coop.wgsl. Needs the cooperative tier.
//
// The exponentials of a row are taken against a reference: the largest score of its first tile, raised to the largest so far only where a score
// exceeds it by more than SLACK, since that means to pass the sums through workgroup memory to scale them. So weights are at most 256 times
// the dropout factor, which the host lets be at most 128, within the range of f16, and the sum of a row's exponentials is at least 1.
//
// Bounds: rows of qkv and out are clamped to seq - 1 or guarded; every index of workgroup memory is a lane's or tile's place in its own block.
#import attention_coop
@group(0) @binding(1) var<storage, read> qkv: array<vec4<Elem>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<Elem>>;
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;          // [batch, heads, seq]
#if DROPOUT
@group(0) @binding(4) var<storage, read> state: StepState;
#endif

const SLACK: f32 = 8.0;
var<workgroup> weights: array<vec4<f16>, SUBGROUPS * W_SIZE>;
var<workgroup> votes: vec4<u32>;

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
    var o{i} = coop_mat16x16<f32, C>();
#endfor
    if index < 4u { votes[index] = 0u; } // of subgroups that there are not
    let scale2 = params.scale * LOG2E;
    let limit = visible(t);
    let own_end = visible(own + 15u);
    let end = select(params.seq, min(block + ROWS, params.seq), params.causal != 0u);
    var reference = MASKED;
    var total = 0.0; // of this invocation's keys
#if DROPOUT
    let step = state.step;
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
        {
            var s = coop_mat16x16<f32, C>();
#for i 0 GROUPS
            s = coopMultiplyAdd(q{i}, coopLoad<coop_mat16x16<f16, B>>(&tile_a[4u * {i}u], STRIDE), s);
#endfor
            let done = s;
            coopStoreT(done, &scores[s_base], S_STRIDE);
        }
        workgroupBarrier();
        let k = vec4<u32>(0u, 1u, 2u, 3u) + (first + 4u * side * 2u);
        var top = MASKED;
#for j 0 2
        let s{j} = select(vec4<f32>(MASKED), scores[s_at + {j}u] * scale2, k + 4u * {j}u < vec4<u32>(limit));
        top = max(top, max(max(s{j}.x, s{j}.y), max(s{j}.z, s{j}.w)));
#endfor
        top = max(top, subgroupShuffleXor(top, 1u));
        let raise = top > reference + SLACK;
        let next = select(reference, top, raise);
        let fade = exp2(reference - next);
        reference = next;
        total *= fade;
        if first < own_end {
#for j 0 2
            {
                var p = exp2(s{j} - reference);
                total += (p.x + p.y) + (p.z + p.w);
#if DROPOUT
                p *= factors_wide(bh, t, k.x / 4u + {j}u, step);
#endif
                weights[w_at + {j}u] = vec4<f16>(p);
            }
#endfor
        } else {
#for j 0 2
            weights[w_at + {j}u] = vec4<f16>();
#endfor
        }
        let vote = subgroupAny(raise && first > 0u);
        if lane == 0u { votes[sub] = u32(vote); }
        let all_votes = workgroupUniformLoad(&votes); // with its barriers
        if any(all_votes != vec4<u32>()) {
#for i 0 GROUPS
            {
                let done = o{i};
                coopStoreT(done, &scores[s_base], S_STRIDE);
                workgroupBarrier();
                let at = s_base + row * S_STRIDE + 2u * side;
                scores[at] *= fade;
                scores[at + 1u] *= fade;
                workgroupBarrier();
                o{i} = coopLoadT<coop_mat16x16<f32, C>>(&scores[s_base], S_STRIDE);
                workgroupBarrier();
            }
#endfor
        }
        {
            let p = coopLoadT<coop_mat16x16<f16, A>>(&weights[w_base], W_STRIDE);
#for i 0 GROUPS
            o{i} = coopMultiplyAdd(p, coopLoadT<coop_mat16x16<f16, B>>(&tile_b[4u * {i}u], STRIDE), o{i});
#endfor
        }
        workgroupBarrier();
#for u 0 UNITS
        tile_a[(unit_row + {u}u * PACE) * STRIDE + unit] = a{u};
        tile_b[(unit_row + {u}u * PACE) * STRIDE + unit] = b{u};
#endfor
    }
    total += subgroupShuffleXor(total, 1u);
#for i 0 GROUPS
    {
        let done = o{i};
        coopStoreT(done, &scores[s_base], S_STRIDE);
        workgroupBarrier();
        let at = s_base + row * S_STRIDE + 2u * side;
        let x = scores[at];
        let y = scores[at + 1u];
        if t < params.seq {
            let to = out_index(head.b, t, head.h) + 4u * {i}u + 2u * side;
            out[to] = vec4<f16>(x / total);
            out[to + 1u] = vec4<f16>(y / total);
        }
        workgroupBarrier();
    }
#endfor
    if side == 0u && t < params.seq { lse[bh * params.seq + t] = reference * LN2 + log(total); }
}
