//! `walsh info`: adapters, tiers, limits.

use super::{mebibytes, put};
use serde_json::{Value, json};
use walsh::train::{Precision, Preset};
use walsh::{Context, ContextOptions, Error, Result, Tier};

/// Flags of `walsh info`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(args: &Args) -> Result<()> {
    let adapters = Context::adapters();
    if adapters.is_empty() && !args.json {
        // The same message as every other command has for it.
        return Context::new().map(|_| ());
    }
    let described: Vec<Value> =
        (0..adapters.len()).map(|number| describe(number, &adapters[number].get_info())).collect();
    if args.json {
        put(&format!("{}\n", json!({ "version": env!("CARGO_PKG_VERSION"), "adapters": described })))?;
        return if adapters.is_empty() { Err(Error::NoAdapter("there is none".to_owned())) } else { Ok(()) };
    }
    for adapter in &described {
        put(&text(adapter))?;
    }
    Ok(())
}

fn describe(number: usize, info: &walsh::wgpu::AdapterInfo) -> Value {
    let mut value = json!({
        "number": number,
        "name": info.name,
        "driver": format!("{} {}", info.driver, info.driver_info).trim(),
        "backend": info.backend.to_str(),
        "type": format!("{:?}", info.device_type),
    });
    let context = match Context::with_options(&ContextOptions::default().adapter(format!("#{number}"))) {
        Ok(context) => context,
        Err(error) => {
            value["error"] = json!(error.to_string());
            return value;
        }
    };
    let caps = context.capabilities();
    let limits = &caps.limits;
    value["tier"] = json!(context.tier().name());
    value["missing"] = caps.missing.iter().map(|(tier, why)| json!({ "tier": tier.name(), "why": why })).collect();
    value["self_test"] = json!(context.self_test_report().map(|report| report.to_string()));
    value["f16"] = json!(caps.f16);
    value["subgroup_size"] = json!([caps.subgroup_size.0, caps.subgroup_size.1]);
    value["features"] = caps.features.iter_names().map(|(name, _)| json!(name)).collect();
    value["limits"] = json!({
        "max_buffer_size": limits.max_buffer_size,
        "max_storage_buffer_binding_size": limits.max_storage_buffer_binding_size,
        "max_storage_buffers_per_shader_stage": limits.max_storage_buffers_per_shader_stage,
        "max_compute_workgroup_storage_size": limits.max_compute_workgroup_storage_size,
        "max_compute_invocations_per_workgroup": limits.max_compute_invocations_per_workgroup,
        "max_compute_workgroups_per_dimension": limits.max_compute_workgroups_per_dimension,
    });
    value["preset"] = json!(Preset::suiting(info.device_type).name());
    value["precision"] = json!(Precision::Auto.resolve(&context).map_or("f32", Precision::name));
    value
}

fn text(adapter: &Value) -> String {
    let word = |key: &str| adapter[key].as_str().unwrap_or_default().to_owned();
    let mut lines = vec![
        format!("#{} {}", adapter["number"], word("name")),
        format!("  driver      {} ({}, {})", word("driver"), word("backend"), word("type")),
    ];
    if let Some(error) = adapter["error"].as_str() {
        lines.push(format!("  unusable    {error}"));
        return lines.join("\n") + "\n";
    }
    let tiers: Vec<&str> = Tier::ALL.iter().map(|t| t.name()).collect();
    lines.push(format!("  tier        {} (of {})", word("tier"), tiers.join(", ")));
    for missing in adapter["missing"].as_array().into_iter().flatten() {
        let part = |key: &str| missing[key].as_str().unwrap_or_default().to_owned();
        lines.push(format!("  not {:<7} {}", part("tier"), part("why")));
    }
    if let Some(report) = adapter["self_test"].as_str() {
        lines.push(format!("  self-test   {report}"));
    }
    let sizes = &adapter["subgroup_size"];
    lines.push(match sizes[1].as_u64() {
        Some(0) | None => "  subgroups   none".to_owned(),
        _ => format!("  subgroups   {} to {} invocations", sizes[0], sizes[1]),
    });
    lines.push(format!("  f16         {}", if adapter["f16"] == true { "yes" } else { "no" }));
    let features: Vec<&str> = adapter["features"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    lines.push(format!("  features    {}", if features.is_empty() { "none".to_owned() } else { features.join(", ") }));
    let limit = |key: &str| adapter["limits"][key].as_u64().unwrap_or_default();
    lines.push(format!("  binding     at most {}", mebibytes(limit("max_storage_buffer_binding_size"))));
    lines.push(format!(
        "  workgroup   {} invocations, {} bytes of memory",
        limit("max_compute_invocations_per_workgroup"),
        limit("max_compute_workgroup_storage_size")
    ));
    lines.push(format!("  train with  --preset {} --precision {}", word("preset"), word("precision")));
    lines.join("\n") + "\n"
}
