// Values of other lanes of the subgroup: there are no subgroups here, and nothing may ask.
struct Invocation { @builtin(local_invocation_index) index: u32 }

// A number below WG_SIZE for each invocation.
fn thread_of(inv: Invocation) -> u32 { return inv.index; }

fn shuffle_xor(value: vec4<f32>, lanes: u32) -> vec4<f32> { return value; }
