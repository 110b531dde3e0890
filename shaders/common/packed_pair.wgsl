// Two quantized operands in workgroup memory, {RUN} of K in a vec4 of bytes or bits: what packed_binary.wgsl and packed_integer.wgsl share;
// their headers explain it. Needs EDGE.
@group(0) @binding(1) var<storage, read> a_codes: array<u32>;
@group(0) @binding(2) var<storage, read> a_side: array<u32>;
@group(0) @binding(3) var<storage, read> b_codes: array<u32>;
@group(0) @binding(4) var<storage, read> b_side: array<u32>;
#import packed_scales p=a
#import packed_scales p=b

const TILE: u32 = 16u * EDGE;
const PARTS: u32 = 16u / EDGE;
const DEPTH: u32 = {RUN} * PARTS;
var<workgroup> tile_a: array<vec4<u32>, 256>;
var<workgroup> tile_b: array<vec4<u32>, 256>;

// Eight neighbouring rows of one part fall on different banks.
fn slot(row: u32, part: u32) -> u32 { return row * PARTS + (part ^ (row * PARTS / 8u % PARTS)); }
