//! `walsh inspect`: what a file of tensors holds.

use super::{mebibytes, put};
use serde_json::{Value, json};
use std::path::PathBuf;
use walsh::Result;
use walsh::io::{Archive, Entry, Metadata};

/// Flags of `walsh inspect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A safetensors or GGUF file
    file: PathBuf,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(args: &Args) -> Result<()> {
    let archive = Archive::open(&args.file)?;
    super::warn_of_guessed_version(&archive, &args.file);
    let container = archive.container().map_or("safetensors", walsh::io::Container::name);
    let metadata: Vec<(String, String)> = match archive.metadata() {
        Metadata::Texts(texts) => texts.clone(),
        Metadata::Gguf(values) => values.iter().map(|entry| (entry.key.clone(), entry.describe())).collect(),
    };
    if args.json {
        let metadata: serde_json::Map<_, _> = metadata.into_iter().map(|(k, v)| (k, v.into())).collect();
        let tensors: Vec<Value> = archive.entries().iter().map(describe).collect();
        let value = json!({
            "file": args.file.display().to_string(), "container": container, "metadata": metadata, "tensors": tensors,
        });
        return put(&format!("{value}\n")).map(|_| ());
    }
    let bytes: u64 = archive.entries().iter().filter_map(Entry::bytes).sum();
    let mut lines = vec![format!(
        "{}: {container}, {} tensors, {}",
        args.file.display(),
        archive.entries().len(),
        mebibytes(bytes)
    )];
    for (key, value) in metadata {
        let short: String = value.chars().take(80).flat_map(char::escape_debug).collect();
        let key: String = key.chars().take(80).flat_map(char::escape_debug).collect();
        lines.push(format!("  {key} = {short}{}", if value.chars().nth(80).is_some() { ".." } else { "" }));
    }
    let rows: Vec<[String; 4]> = archive.entries().iter().map(row).collect();
    let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2), width(3)];
    for [name, shape, kind, bits] in &rows {
        let [a, b, c, d] = widths;
        lines.push(format!("{name:a$}  {shape:b$}  {kind:c$}  {bits:>d$}"));
    }
    put(&(lines.join("\n") + "\n")).map(|_| ())
}

/// Bits per element in the file.
#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
fn bits(entry: &Entry) -> Option<f64> {
    entry.bytes().filter(|_| entry.elements() > 0).map(|bytes| bytes as f64 * 8.0 / entry.elements() as f64)
}

fn describe(entry: &Entry) -> Value {
    json!({
        "name": entry.name(),
        "shape": entry.shape(),
        "format": entry.format().map(|f| f.to_string()),
        "type": entry.kind(),
        "bytes": entry.bytes(),
        "bits_per_weight": bits(entry),
    })
}

fn row(entry: &Entry) -> [String; 4] {
    let name: String = entry.name().chars().flat_map(char::escape_debug).collect();
    let bits = bits(entry).map(|bits| format!("{bits:.3} bits per weight"));
    let unread = (!entry.is_read()).then(|| "not read by walsh".to_owned());
    let bits = bits.into_iter().chain(unread).collect::<Vec<_>>().join(", ");
    [name, format!("{:?}", entry.shape()), entry.kind(), bits]
}
