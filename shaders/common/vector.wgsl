// V is a unit of WIDTH (1 or 4) neighbouring columns in f32: rows of a multiple of 4 columns are read as vec4, others one by one.
#if WIDTH == 4
alias V = vec4<f32>;
fn total(v: V) -> f32 { return (v.x + v.y) + (v.z + v.w); }
#else
alias V = f32;
fn total(v: V) -> f32 { return v; }
#endif
