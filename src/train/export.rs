//! Trained models in one file: the codes and scales of the last step as they are, and what it takes to run them.
//!
//! walsh's own container has everything under the names of checkpoints. GGUF has the names and metadata of llama.cpp's `gpt2`, whose norms and
//! linear layers have biases; where the model has none they are written as zeros. What neither has a field for is a JSON object under the
//! metadata key [`KEY`].

use super::config::Precision;
use super::data::CharVocab;
use crate::io::gguf::KeyValue;
use crate::io::{
    Archive, Container, Dtype, Entry, Item, ItemContent, Metadata, PackedTensor, Writer,
    convert::{Summary, saturated},
};
use crate::kernel::packed::Packed;
use crate::nn::{Gpt, GptConfig};
use crate::qat::Quantizer;
use crate::{Context, DType, Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

/// The metadata key.
pub const KEY: &str = "walsh.model";
/// The version of what stands there.
const VERSION: u32 = 1;
/// The containers that hold a whole model.
pub const CONTAINERS: [Container; 2] = [Container::Walsh, Container::Gguf];
/// The embedding, whose rows beyond the vocabulary are no part of a file.
const TOKENS: &str = "transformer.wte.weight";

/// What a file says of its model beside the tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelInfo {
    /// The shape, and how operands are quantized.
    pub gpt: GptConfig,
    /// The tokens.
    pub vocab: CharVocab,
    /// The type of activations: f32 or f16.
    pub precision: Precision,
    /// Steps that it was trained for.
    pub step: u64,
    /// Its validation loss, where that was measured at this step, in nats per token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    model: ModelInfo,
}

impl ModelInfo {
    /// Checks that the fields make sense and fit together.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the field.
    pub fn validate(&self) -> Result<()> {
        self.gpt.validate()?;
        if self.vocab.len() != self.gpt.vocab {
            let expected = format!("{} characters", self.gpt.vocab);
            return Err(Error::invalid("vocabulary", expected, self.vocab.len().to_string()));
        }
        if self.precision == Precision::Auto {
            return Err(Error::invalid("precision", "f32 or f16", "auto"));
        }
        Ok(())
    }

    /// The metadata of a file with this model.
    ///
    /// # Errors
    /// [`Error::Invalid`] for numbers that JSON or the container has no place for.
    pub fn metadata(&self, container: Container) -> Result<Metadata> {
        let header = Header { version: VERSION, model: self.clone() };
        let json = serde_json::to_string(&header)
            .map_err(|e| Error::invalid("model", "settings that JSON can hold", e.to_string()))?;
        if container != Container::Gguf {
            return Ok(Metadata::Texts(vec![(KEY.to_owned(), json)]));
        }
        let number = |what: &str, value: usize| {
            u32::try_from(value).map_err(|_| Error::invalid(what, "a number below 2^32", value.to_string()))
        };
        let GptConfig { layers, heads, embd, block, .. } = self.gpt;
        let mut values = vec![
            KeyValue::from_text("general.architecture", "gpt2"),
            KeyValue::from_text("general.name", &format!("walsh gpt2, step {}", self.step)),
            KeyValue::from_u32("general.quantization_version", 2),
            KeyValue::from_u32("general.alignment", 32),
        ];
        for (key, value) in [
            ("gpt2.context_length", block),
            ("gpt2.embedding_length", embd),
            ("gpt2.feed_forward_length", 4 * embd),
            ("gpt2.block_count", layers),
            ("gpt2.attention.head_count", heads),
        ] {
            values.push(KeyValue::from_u32(key, number(key, value)?));
        }
        values.push(KeyValue::from_f32("gpt2.attention.layer_norm_epsilon", crate::nn::LAYER_NORM_EPSILON));
        let spelled: Vec<String> =
            (0..).map_while(|token| self.vocab.character(token)).map(|c| spell(c.encode_utf8(&mut [0; 4]))).collect();
        values.push(KeyValue::from_text("tokenizer.ggml.model", "gpt2"));
        values.push(KeyValue::from_text("tokenizer.ggml.pre", "gpt-2"));
        values.push(KeyValue::from_texts("tokenizer.ggml.tokens", spelled.iter().map(String::as_str)));
        // Ordinary tokens, and no merges: each character is a token of its own.
        values.push(KeyValue::from_i32s("tokenizer.ggml.token_type", &vec![1; spelled.len()]));
        values.push(KeyValue::from_texts("tokenizer.ggml.merges", [].into_iter()));
        values.push(KeyValue::from_text(KEY, &json));
        Ok(Metadata::Gguf(values))
    }

    /// What a file's metadata says; none where it says nothing of a model.
    fn find(archive: &Archive<'_>) -> Result<Option<Self>> {
        let bad = |expected: &str, got: String| Error::file(archive.path(), expected, got);
        let json = match archive.metadata() {
            Metadata::Texts(texts) => texts.iter().find(|(key, _)| key == KEY).map(|(_, json)| json.as_str()),
            Metadata::Gguf(values) => match values.iter().find(|value| value.key == KEY) {
                None => None,
                Some(value) => match value.as_text() {
                    Some(json) => Some(json),
                    None => return Err(bad("a text under the metadata key walsh.model", value.describe())),
                },
            },
        };
        let Some(json) = json else { return Ok(None) };
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        // The version first: another version's other fields may be anything.
        let described =
            |e: serde_json::Error| bad("a model's settings under the metadata key walsh.model", e.to_string());
        let Version { version } = serde_json::from_str(json).map_err(described)?;
        if version != VERSION {
            return Err(bad(&format!("version {VERSION} of walsh's exported models"), version.to_string()));
        }
        let Header { model, .. } = serde_json::from_str(json).map_err(described)?;
        model.validate().map_err(|e| bad("a model's settings that make sense", e.to_string()))?;
        Ok(Some(model))
    }
}

/// Bytes as GPT-2's tokenizer spells them: printable Latin-1 as itself, the others as the characters from U+0100 on, in order.
fn spell(text: &str) -> String {
    let plain = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let spelled = |byte: u8| {
        let others = (0..byte).filter(|b| !plain(*b)).count();
        let code = if plain(byte) { u32::from(byte) } else { 256 + others as u32 };
        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
    };
    text.bytes().map(spelled).collect()
}

/// Layers of the model and what GGUF calls them.
const LAYERS: [(&str, &str); 3] =
    [("transformer.wte", "token_embd"), ("transformer.wpe", "position_embd"), ("transformer.ln_f", "output_norm")];
/// The same within a block.
const BLOCK_LAYERS: [(&str, &str); 6] = [
    ("ln_1", "attn_norm"),
    ("attn.c_attn", "attn_qkv"),
    ("attn.c_proj", "attn_output"),
    ("ln_2", "ffn_norm"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.c_proj", "ffn_down"),
];

/// A parameter's name as one container has it, from that of the other; `to_gguf` says which way.
fn rename(name: &str, to_gguf: bool) -> Option<String> {
    let pick = |table: &[(&'static str, &'static str)], layer: &str| {
        let found = table.iter().find(|(own, gguf)| layer == if to_gguf { *own } else { *gguf });
        found.map(|(own, gguf)| if to_gguf { *gguf } else { *own })
    };
    let (layer, part) = name.rsplit_once('.').filter(|(_, part)| matches!(*part, "weight" | "bias"))?;
    if let Some(layer) = pick(&LAYERS, layer) {
        return Some(format!("{layer}.{part}"));
    }
    let (from, to) = if to_gguf { ("transformer.h.", "blk") } else { ("blk.", "transformer.h") };
    let (number, layer) = layer.strip_prefix(from)?.split_once('.')?;
    // As it is written, and no other spelling of the same number.
    let number = number.parse::<u32>().ok().filter(|n| n.to_string() == number)?;
    Some(format!("{to}.{number}.{}.{part}", pick(&BLOCK_LAYERS, layer)?))
}

/// A parameter's name in `container`.
fn name_in(container: Container, name: &str) -> Option<String> {
    if container == Container::Gguf { rename(name, true) } else { Some(name.to_owned()) }
}

/// Refuses what `container` cannot hold of this model.
fn check(gpt: &Gpt, container: Container) -> Result<()> {
    let what = "--container";
    if !CONTAINERS.contains(&container) {
        let expected = format!("{}, which hold a whole model", CONTAINERS.map(Container::name).join(" or "));
        return Err(Error::invalid(what, expected, container.name()));
    }
    let Some(quantizer) = gpt.config().quantizer else { return Ok(()) };
    if let (Container::Gguf, Some(block)) = (container, quantizer.hadamard) {
        let expected = "walsh for rotated weights: gguf has weights that multiply inputs as they are";
        return Err(Error::invalid(what, expected, format!("gguf and weights rotated by {block}")));
    }
    for shape in gpt.config().projections() {
        container.supports(&quantizer.weights, &shape).map_err(|reason| {
            let expected =
                format!("walsh, which holds every format, for weights of {shape:?} in {}", quantizer.weights);
            Error::invalid(what, expected, format!("{container}: {reason}"))
        })?;
    }
    Ok(())
}

/// Refuses a weight whose scales saturate, as quantizing it from a file would: what its codes stand for is not what was learned.
fn check_scales(gpt: &Gpt, index: usize, name: &str) -> Result<()> {
    // Of codes that were given nobody knows what they were made of.
    let quantizer = gpt.config().quantizer.filter(|q| q.weights.saturates() && !gpt.is_given(index));
    let Some(Quantizer { weights, .. }) = quantizer else { return Ok(()) };
    let values: Vec<f32> = bytemuck::pod_collect_to_vec(&gpt.parameters()[index].read()?.wait()?);
    match gpt.saturated_scale(index, &values)? {
        None => Ok(()),
        Some(found) => {
            let (expected, got) = saturated(name, weights, found);
            Err(Error::invalid("export", expected, got))
        }
    }
}

/// Writes the model into `path`: codes and scales of quantized weights as forward passes multiply them now, other parameters in f32.
/// `progress` is called before each tensor and after the last, with its number, how many there are, and its name; an error from it ends the work
/// and leaves no output. `info.gpt` is the model's own configuration.
///
/// # Errors
/// [`Error::Invalid`] where the container cannot hold the model, and naming the tensor where a weight's scales are beyond what its format stores
/// ([`Format::saturated_scale`](crate::format::Format::saturated_scale)); [`Error::Io`]; of the device; those of `progress`.
pub fn export(
    gpt: &Gpt,
    info: &ModelInfo,
    path: &Path,
    container: Container,
    mut progress: impl FnMut(usize, usize, &str) -> Result<()>,
) -> Result<Summary> {
    info.validate()?;
    if info.gpt != *gpt.config() {
        return Err(Error::invalid("export", "the model's own configuration", format!("{:?}", info.gpt)));
    }
    check(gpt, container)?;
    let (mut items, mut sources) = (Vec::new(), Vec::new());
    for (index, (parameter, tensor)) in gpt.parameters().iter().enumerate() {
        let own = &parameter.name;
        let name = name_in(container, own).ok_or_else(|| {
            let expected = format!("walsh for a model with a tensor `{own}`: {container}'s gpt2 has no name for it");
            Error::invalid("--container", expected, container.name())
        })?;
        let mut shape = tensor.shape().to_vec();
        let content = match gpt.config().quantizer.filter(|_| gpt.is_quantized(index)) {
            Some(quantizer) => ItemContent::Packed { format: quantizer.weights, dtype: Dtype::F32, permuted: false },
            None => ItemContent::Plain(Dtype::F32),
        };
        if own == TOKENS {
            shape[0] = info.gpt.vocab;
        }
        if container == Container::Gguf && !info.gpt.bias && !own.starts_with("transformer.w") {
            let bias = Item {
                name: name.replace(".weight", ".bias"),
                shape: vec![tensor.shape()[0]],
                content: ItemContent::Plain(Dtype::F32),
            };
            items.push(bias);
            sources.push(None);
        }
        items.push(Item { name, shape, content });
        sources.push(Some(index));
    }
    let (shapes, count): (Vec<_>, _) = (items.iter().map(|item| item.shape.clone()).collect(), items.len());
    let names: Vec<_> = items.iter().map(|item| item.name.clone()).collect();
    Writer::write(path, Some(container), items, &info.metadata(container)?, |writer| {
        let mut summary = Summary::default();
        for (number, (source, shape)) in sources.into_iter().zip(shapes).enumerate() {
            progress(number, count, &names[number])?;
            let elements: usize = shape.iter().product();
            let Some(index) = source else {
                writer.plain(number, 0, &vec![0; elements * 4])?;
                continue;
            };
            if let Some(packed) = gpt.packed_weight(index)? {
                check_scales(gpt, index, &names[number])?;
                let mut matrix = packed.to_host(gpt.parameters().context())?;
                // Encoding leaves it out where no kernel of the device asks for it.
                matrix.set_norm();
                let tensor = PackedTensor { matrix, shape, dtype: Dtype::F32, order: None };
                summary.bytes += writer.packed(number, &tensor)?;
                summary.converted += 1;
                summary.elements += elements as u64;
            } else {
                let bytes = gpt.parameters()[index].read()?.wait()?;
                writer.plain(number, 0, &bytes[..elements * 4])?;
                summary.copied += 1;
            }
        }
        // Once more, so that who stops during the last one is heard.
        if let Some(name) = names.last() {
            progress(count - 1, count, name)?;
        }
        Ok(summary)
    })
}

/// An open file with a model.
#[derive(Debug)]
pub struct Exported<'s> {
    archive: Archive<'s>,
    info: ModelInfo,
}

impl Exported<'static> {
    /// Opens a file and reads what it says of its model; none where it is a file of tensors without that.
    ///
    /// # Errors
    /// As [`Archive::open`]; [`Error::File`] where the settings make no sense or the tensors are too few for them.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        Self::from_archive(Archive::open(path)?)
    }
}

impl<'s> Exported<'s> {
    /// The same for a file in memory; `path` is for messages.
    ///
    /// # Errors
    /// As [`Exported::open`].
    pub fn from_bytes(path: impl AsRef<Path>, bytes: &'s [u8]) -> Result<Option<Self>> {
        Self::from_archive(Archive::from_bytes(path, bytes, None)?)
    }

    /// The same for a file that is open.
    ///
    /// # Errors
    /// As [`Exported::open`].
    pub fn from_archive(archive: Archive<'s>) -> Result<Option<Self>> {
        let Some(info) = ModelInfo::find(&archive)? else { return Ok(None) };
        let known = archive.entries().iter().filter(|entry| entry.is_read());
        let elements = known.fold(0u64, |sum, entry| sum.saturating_add(entry.elements() as u64));
        // Before anything is made for the model: a file is not to ask for more memory than it has content.
        if elements < info.gpt.parameters() {
            let expected = format!("tensors of a model of {} parameters", info.gpt.parameters());
            return Err(Error::file(archive.path(), expected, format!("{elements} elements")));
        }
        Ok(Some(Self { archive, info }))
    }

    /// What the file says of its model.
    #[must_use]
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The model, with products and activations in `dtype`. Quantized weights take the memory of their codes and scales only; in
    /// [`ModelInfo::precision`] the model computes what the exported one did, to the bit on the same device.
    ///
    /// # Errors
    /// [`Error::File`], naming the tensor that is missing, malformed or not of the model; as [`Gpt::new`].
    pub fn load(&self, context: &Context, dtype: DType) -> Result<Gpt> {
        let path = self.archive.path();
        let gguf = matches!(self.archive.metadata(), Metadata::Gguf(_));
        let bad =
            |name: &str, expected: &str, got: String| Error::file(path, format!("{expected} as tensor `{name}`"), got);
        let (mut packed, mut plain) = (HashMap::new(), HashMap::new());
        for entry in self.archive.entries() {
            let name = if gguf { rename(entry.name(), false) } else { Some(entry.name().to_owned()) };
            let name = name.ok_or_else(|| bad(entry.name(), "a parameter of the model", entry.kind()))?;
            match (entry.format(), self.info.gpt.quantizer) {
                (Some(_), Some(quantizer)) => {
                    let matrix = self.archive.packed_as(entry, quantizer.weights)?.matrix;
                    packed.insert(name, Packed::from_host(context, &matrix)?);
                }
                (None, _) if gguf && !self.info.gpt.bias && name.ends_with(".bias") => self.check_zeros(entry)?,
                _ => {
                    plain.insert(name, entry);
                }
            }
        }
        let gpt = Gpt::from_quantized(context, self.info.gpt.clone(), 0, dtype, packed).map_err(|e| match e {
            Error::Invalid { what, expected, got } => Error::file(path, format!("{expected} as {what}"), got),
            other => other,
        })?;
        let dense = gpt.parameters().iter().enumerate().filter(|(index, _)| !gpt.is_quantized(*index));
        for (_, (parameter, tensor)) in dense {
            let name = parameter.name.as_str();
            let mut shape = tensor.shape().to_vec();
            if name == TOKENS {
                shape[0] = self.info.gpt.vocab;
            }
            let entry = plain.remove(name).ok_or_else(|| bad(name, &format!("F32 {shape:?}"), "none".to_owned()))?;
            if entry.dtype() != Some(Dtype::F32) || entry.shape() != shape {
                let got = format!("{} {:?}", entry.kind(), entry.shape());
                return Err(bad(entry.name(), &format!("F32 {shape:?}"), got));
            }
            let mut bytes = self.archive.plain(entry, 0, u64::MAX)?;
            bytes.resize(tensor.len() * 4, 0);
            tensor.write(&bytes)?;
        }
        match plain.values().next() {
            Some(entry) => Err(bad(entry.name(), "a parameter of the model", entry.kind())),
            None => Ok(gpt),
        }
    }

    /// Refuses a bias that the model has no place for.
    fn check_zeros(&self, entry: &Entry) -> Result<()> {
        let bytes = self.archive.plain(entry, 0, u64::MAX)?;
        if entry.dtype() == Some(Dtype::F32) && bytes.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let expected = format!("zeros as tensor `{}` of a model without biases", entry.name());
        Err(Error::file(self.archive.path(), expected, "others"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_to_gguf_and_back() {
        for (own, gguf) in [
            ("transformer.wte.weight", "token_embd.weight"),
            ("transformer.wpe.weight", "position_embd.weight"),
            ("transformer.h.0.ln_1.bias", "blk.0.attn_norm.bias"),
            ("transformer.h.11.attn.c_attn.weight", "blk.11.attn_qkv.weight"),
            ("transformer.h.3.attn.c_proj.weight", "blk.3.attn_output.weight"),
            ("transformer.h.3.mlp.c_fc.bias", "blk.3.ffn_up.bias"),
            ("transformer.h.3.mlp.c_proj.weight", "blk.3.ffn_down.weight"),
            ("transformer.h.3.ln_2.weight", "blk.3.ffn_norm.weight"),
            ("transformer.ln_f.weight", "output_norm.weight"),
        ] {
            assert_eq!(rename(own, true).unwrap(), gguf);
            assert_eq!(rename(gguf, false).unwrap(), own);
        }
        for name in ["transformer.h.0.attn.c_attn.scale", "transformer.h.x.ln_1.bias", "lm_head.weight", "weight", ""] {
            assert_eq!(rename(name, true), None, "{name}");
        }
        for name in ["blk.00.attn_qkv.weight", "blk.+1.attn_qkv.weight", "blk.attn_qkv.weight", "rope_freqs.weight"] {
            assert_eq!(rename(name, false), None, "{name}");
        }
    }

    #[test]
    fn bytes_are_spelled_as_gpt2_does() {
        assert_eq!(spell("a~!"), "a~!");
        // Space, line break, delete, and the two bytes of a letter.
        assert_eq!(spell(" \n\u{7f}\u{e9}"), "\u{120}\u{10a}\u{121}\u{c3}\u{a9}");
        let all: std::collections::HashSet<String> = ('\0'..='\u{7f}').map(|c| spell(&c.to_string())).collect();
        assert_eq!(all.len(), 128);
    }
}
