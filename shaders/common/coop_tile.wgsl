// The 128 x 128 tile that a workgroup of four subgroups multiplies by 16 x 16 cooperative matrices, a slice of 32 of K at a time, in workgroup
// memory. Needs FORM. Users: see matmul_coop.wgsl for what the shapes are for.
const TILE: u32 = 128u;
const DEPTH: u32 = 32u;
// Per operand, in vec4: STRIDE from row to row in workgroup memory; ROWS between two loads of an invocation; from one 16 x 16 block to the
// next ALONG the tile's edge, and DOWN K.
#if FORM == 2
const A_STRIDE: u32 = (TILE + 8u) / 4u;    // [k][m]
const A_SIZE: u32 = DEPTH * A_STRIDE;
const A_ROWS: u32 = 4u;
const A_ALONG: u32 = 4u;
const A_DOWN: u32 = 16u * A_STRIDE;
#else
const A_STRIDE: u32 = (DEPTH + 8u) / 4u;   // [m][k]
const A_SIZE: u32 = TILE * A_STRIDE;
const A_ROWS: u32 = 16u;
const A_ALONG: u32 = 16u * A_STRIDE;
const A_DOWN: u32 = 4u;
#endif
#if FORM == 0
const B_STRIDE: u32 = (DEPTH + 8u) / 4u;   // [n][k]
const B_SIZE: u32 = TILE * B_STRIDE;
const B_ROWS: u32 = 16u;
const B_ALONG: u32 = 16u * B_STRIDE;
const B_DOWN: u32 = 4u;
#else
const B_STRIDE: u32 = (TILE + 8u) / 4u;    // [k][n]
const B_SIZE: u32 = DEPTH * B_STRIDE;
const B_ROWS: u32 = 4u;
const B_ALONG: u32 = 4u;
const B_DOWN: u32 = 16u * B_STRIDE;
#endif

var<workgroup> tile_a: array<vec4<f16>, A_SIZE>;
var<workgroup> tile_b: array<vec4<f16>, B_SIZE>;
var<workgroup> block: array<vec4<f32>, 256>;   // 16 x 16 per subgroup
