// Four elements of a dense operand {p} from unit i on, see tiled.wgsl. edge_ clamps, load_ does so where elements are loaded one by one (in
// the loop it costs a tenth).
#if VEC
fn edge_{p}(i: u32, last: u32) -> vec4<f32> { return vec4<f32>({p}[min(i, last)]); }
fn load_{p}(i: u32, last: u32) -> vec4<f32> { return vec4<f32>({p}[i]); }
#else
fn load_{p}(i: u32, last: u32) -> vec4<f32> { return edge_{p}(i, last); }
fn edge_{p}(i: u32, last: u32) -> vec4<f32> {
    return vec4<f32>(f32({p}[min(i, last)]), f32({p}[min(i + 1u, last)]), f32({p}[min(i + 2u, last)]), f32({p}[min(i + 3u, last)]));
}
#endif
