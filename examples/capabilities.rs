//! Lists the adapters, the tier that walsh would use on each, and why not a higher one.

use walsh::{Context, ContextOptions, Result};

fn main() -> Result<()> {
    print!("{}", report()?);
    Ok(())
}

/// A paragraph per adapter.
pub fn report() -> Result<String> {
    let adapters = Context::adapters();
    if adapters.is_empty() {
        Context::new()?; // fails, and says what to install
    }
    let mut text = String::new();
    for (number, adapter) in adapters.iter().enumerate() {
        let info = adapter.get_info();
        text += &format!("#{number} {} ({}, {:?})\n", info.name, info.backend, info.device_type);
        let context = match Context::with_options(&ContextOptions::default().adapter(format!("#{number}"))) {
            Ok(context) => context,
            Err(error) => {
                text += &format!("   unusable: {error}\n");
                continue;
            }
        };
        let caps = context.capabilities();
        text += &format!("   tier {}, f16 {}\n", context.tier(), if caps.f16 { "yes" } else { "no" });
        for (tier, why) in &caps.missing {
            text += &format!("   not {tier}: {why}\n");
        }
        text += &format!("   tensors of up to {} MiB\n", caps.limits.max_storage_buffer_binding_size >> 20);
    }
    Ok(text)
}
