// embedding_sort.wgsl: a stable sort of rows by token: row i goes to place #{j : token_j < token_i, or token_j = token_i and j < i}. A
// workgroup places eight rows; each invocation compares them with every WG_SIZE-th token. The work is rows^2 / 4 vec4 comparisons, which
// for the rows of one step is less than what the gradients' own traffic costs. Baseline.
struct Params { rows: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> tokens: array<u32>;               // [rows]
@group(0) @binding(2) var<storage, read_write> order: array<vec2<u32>>;    // [rows]: token, row
var<workgroup> scratch: array<array<vec4<u32>, 2>, WG_SIZE>;

fn is_before(token: u32, row: u32, tokens_in: vec4<u32>, rows_in: vec4<u32>) -> vec4<u32> {
    let t = vec4<u32>(token);
    return select(vec4<u32>(0u), vec4<u32>(1u), (t < tokens_in) | ((t == tokens_in) & (vec4<u32>(row) < rows_in)));
}

fn token_at(row: u32) -> u32 { return tokens[min(row, params.rows - 1u)]; }

@compute @workgroup_size(WG_SIZE)
fn main(
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
    let first = (wg.y * grid.x + wg.x) * 8u;
    if first >= params.rows { return; } // uniform per workgroup
    let low = vec4<u32>(0u, 1u, 2u, 3u) + first;
    let high = low + 4u;
    let low_tokens = vec4<u32>(token_at(first), token_at(first + 1u), token_at(first + 2u), token_at(first + 3u));
    let high_tokens = vec4<u32>(token_at(first + 4u), token_at(first + 5u), token_at(first + 6u), token_at(first + 7u));
    var low_count = vec4<u32>(0u);
    var high_count = vec4<u32>(0u);
    for (var j = index; j < params.rows; j += WG_SIZE) {
        let token = tokens[j];
        low_count += is_before(token, j, low_tokens, low);
        high_count += is_before(token, j, high_tokens, high);
    }
    scratch[index][0] = low_count;
    scratch[index][1] = high_count;
    workgroupBarrier();
    for (var span = WG_SIZE / 2u; span > 0u; span /= 2u) {
        if index < span {
            scratch[index][0] += scratch[index + span][0];
            scratch[index][1] += scratch[index + span][1];
        }
        workgroupBarrier();
    }
    if index < 8u && first + index < params.rows {
        let place = scratch[0][index / 4u][index % 4u];
        order[place] = vec2<u32>(token_at(first + index), first + index);
    }
}
