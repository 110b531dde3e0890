// What matmul_tiled.wgsl and packed_tiled.wgsl share: the tiles in workgroup memory, and who stages what. Needs FORM, VEC, DEPTH, ROWS,
// BLOCKS_N.
const INVOCATIONS: u32 = 16u * ROWS;
const TILE: u32 = 64u * BLOCKS_N;   // = 4 ROWS BLOCKS_M
const STRIDE: u32 = TILE / 4u;      // vec4 from one k to the next
#if FORM == 2
var<workgroup> tile_a: array<vec4<f32>, DEPTH * STRIDE>;
fn staged_a(i: u32) -> vec4<f32> { return tile_a[i]; }
#else
#import tiled_alone p=a
#endif
#if FORM == 0
#import tiled_alone p=b
#else
var<workgroup> tile_b: array<vec4<f32>, DEPTH * STRIDE>;
fn staged_b(i: u32) -> vec4<f32> { return tile_b[i]; }
#endif

// What points into a dense operand counts units of UNIT elements.
#if VEC
const UNIT: u32 = 4u;
#else
const UNIT: u32 = 1u;
#endif
#if FORM == 2
const A_COLS: u32 = STRIDE;         // invocations side by side along the contiguous dimension
#else
const A_COLS: u32 = DEPTH / 4u;
#endif
#if FORM == 0
const B_COLS: u32 = DEPTH / 4u;
#else
const B_COLS: u32 = STRIDE;
#endif
const A_ROWS: u32 = INVOCATIONS / A_COLS;   // rows between two loads of an invocation
const B_ROWS: u32 = INVOCATIONS / B_COLS;
