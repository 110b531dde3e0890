// The same without subgroup operations: every invocation loads every vec4 of the row.
struct Invocation { @builtin(local_invocation_index) index: u32 }
alias Row = array<vec4<f32>, HEAD_DIM / 4u>;
const FAN_STEP: u32 = 1u;

fn fan_lane(inv: Invocation) -> u32 { return 0u; }

fn fan_out(part: vec4<f32>, row: ptr<function, Row>, i: u32) { (*row)[i] = part; }
