#[test]
fn all() {
    for k in walsh::kernel::ALL {
        for d in (k.variants)() {
            for t in k.tiers {
                let key = walsh::shader::Key { kernel: k, tier: *t, defines: d.clone() };
                let r = key.reflect().unwrap();
                let mut c = naga::valid::Capabilities::empty();
                if d.iter().any(|x| matches!(x.1, walsh::shader::Define::Type(walsh::shader::Scalar::F16))) {
                    c |= naga::valid::Capabilities::SHADER_FLOAT16;
                }
                if *t >= walsh::Tier::Subgroup {
                    c |= naga::valid::Capabilities::SUBGROUP;
                }
                let mut v = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), c);
                if let Err(e) = v.validate(&r.module) {
                    panic!("{key}: {}", e.emit_to_string(&r.source));
                }
            }
        }
    }
}
