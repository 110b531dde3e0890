//! A small WGSL preprocessor: imports, conditional blocks and generated constants. Unknown names are errors.
//!
//! Directives stand alone on a line:
//! - `#import NAME` includes `shaders/common/NAME.wgsl`, or its `NAME.TIER.wgsl` where the snippet differs by tier (once);
//!   `#import NAME KEY=VALUE ..` replaces `{KEY}` in it by `VALUE` (once for each set of values);
//! - `#if NAME`, `#if !NAME`, `#if NAME == VALUE`, `#if NAME != VALUE`, `#if NAME < NUMBER`, `#else`, `#endif` ask the defines;
//! - `#for NAME FROM TO` .. `#endfor` repeats its lines for NAME = FROM, FROM + 1, .. TO - 1 (numbers or defines), with `{NAME}` replaced;
//! - `#enable EXTENSION` becomes an `enable` line at the very top, where WGSL wants it.
//!
//! Every define is also emitted as a WGSL `const` (numbers, booleans) or `alias` (types) before the source.

use super::{Define, Defines};
use crate::Tier;

/// The snippets under `shaders/common/`.
const SNIPPETS: &[(&str, &str)] = &[
    ("reduce.baseline", include_str!("../../shaders/common/reduce.baseline.wgsl")),
    ("reduce.subgroup", include_str!("../../shaders/common/reduce.subgroup.wgsl")),
    ("attention", include_str!("../../shaders/common/attention.wgsl")),
    ("attention_coop", include_str!("../../shaders/common/attention_coop.wgsl")),
    ("attention_coop_begin", include_str!("../../shaders/common/attention_coop_begin.wgsl")),
    ("attention_coop_gradient", include_str!("../../shaders/common/attention_coop_gradient.wgsl")),
    ("philox_wide", include_str!("../../shaders/common/philox_wide.wgsl")),
    ("attention_tile", include_str!("../../shaders/common/attention_tile.wgsl")),
    ("fan.baseline", include_str!("../../shaders/common/fan.baseline.wgsl")),
    ("fan.subgroup", include_str!("../../shaders/common/fan.subgroup.wgsl")),
    ("matmul_epilogue", include_str!("../../shaders/common/matmul_epilogue.wgsl")),
    ("matmul_operands", include_str!("../../shaders/common/matmul_operands.wgsl")),
    ("tiled", include_str!("../../shaders/common/tiled.wgsl")),
    ("tiled_alone", include_str!("../../shaders/common/tiled_alone.wgsl")),
    ("tiled_load", include_str!("../../shaders/common/tiled_load.wgsl")),
    ("tiled_begin", include_str!("../../shaders/common/tiled_begin.wgsl")),
    ("tiled_along", include_str!("../../shaders/common/tiled_along.wgsl")),
    ("tiled_across", include_str!("../../shaders/common/tiled_across.wgsl")),
    ("tiled_stage", include_str!("../../shaders/common/tiled_stage.wgsl")),
    ("tiled_multiply", include_str!("../../shaders/common/tiled_multiply.wgsl")),
    ("tiled_codes", include_str!("../../shaders/common/tiled_codes.wgsl")),
    ("tiled_group", include_str!("../../shaders/common/tiled_group.wgsl")),
    ("coop_tile", include_str!("../../shaders/common/coop_tile.wgsl")),
    ("coop_begin", include_str!("../../shaders/common/coop_begin.wgsl")),
    ("coop_multiply", include_str!("../../shaders/common/coop_multiply.wgsl")),
    ("coop_finish", include_str!("../../shaders/common/coop_finish.wgsl")),
    ("packed_coop_fetch", include_str!("../../shaders/common/packed_coop_fetch.wgsl")),
    ("packed_coop_decode", include_str!("../../shaders/common/packed_coop_decode.wgsl")),
    ("packed_coop_store", include_str!("../../shaders/common/packed_coop_store.wgsl")),
    ("packed_unit", include_str!("../../shaders/common/packed_unit.wgsl")),
    ("activation", include_str!("../../shaders/common/activation.wgsl")),
    ("philox", include_str!("../../shaders/common/philox.wgsl")),
    ("step_state", include_str!("../../shaders/common/step_state.wgsl")),
    ("packed", include_str!("../../shaders/common/packed.wgsl")),
    ("packed_any", include_str!("../../shaders/common/packed_any.wgsl")),
    ("packed_bytes", include_str!("../../shaders/common/packed_bytes.wgsl")),
    ("packed_bits", include_str!("../../shaders/common/packed_bits.wgsl")),
    ("packed_pair", include_str!("../../shaders/common/packed_pair.wgsl")),
    ("packed_pair_begin", include_str!("../../shaders/common/packed_pair_begin.wgsl")),
    ("packed_pair_finish", include_str!("../../shaders/common/packed_pair_finish.wgsl")),
    ("packed_integer_scale", include_str!("../../shaders/common/packed_integer_scale.wgsl")),
    ("packed_scales", include_str!("../../shaders/common/packed_scales.wgsl")),
    ("packed_level", include_str!("../../shaders/common/packed_level.wgsl")),
    ("packed_decode", include_str!("../../shaders/common/packed_decode.wgsl")),
    ("packed_store", include_str!("../../shaders/common/packed_store.wgsl")),
    ("packed_epilogue", include_str!("../../shaders/common/packed_epilogue.wgsl")),
    ("packed_info", include_str!("../../shaders/common/packed_info.wgsl")),
    ("handed_scale", include_str!("../../shaders/common/handed_scale.wgsl")),
    ("quantize_info", include_str!("../../shaders/common/quantize_info.wgsl")),
    ("quantize_signs", include_str!("../../shaders/common/quantize_signs.wgsl")),
    ("quantize_load", include_str!("../../shaders/common/quantize_load.wgsl")),
    ("quantize_see", include_str!("../../shaders/common/quantize_see.wgsl")),
    ("quantize_tile", include_str!("../../shaders/common/quantize_tile.wgsl")),
    ("quantize_span", include_str!("../../shaders/common/quantize_span.wgsl")),
    ("quantize_total.baseline", include_str!("../../shaders/common/quantize_total.baseline.wgsl")),
    ("quantize_total.subgroup", include_str!("../../shaders/common/quantize_total.subgroup.wgsl")),
    ("quantize_scale", include_str!("../../shaders/common/quantize_scale.wgsl")),
    ("quantize_code", include_str!("../../shaders/common/quantize_code.wgsl")),
    ("quantize_unit", include_str!("../../shaders/common/quantize_unit.wgsl")),
    ("quantize_rank", include_str!("../../shaders/common/quantize_rank.wgsl")),
    ("quantize_tally", include_str!("../../shaders/common/quantize_tally.wgsl")),
    ("quantize_side", include_str!("../../shaders/common/quantize_side.wgsl")),
    ("vector", include_str!("../../shaders/common/vector.wgsl")),
    ("elem", include_str!("../../shaders/common/elem.wgsl")),
    ("elem_in", include_str!("../../shaders/common/elem_in.wgsl")),
    ("logits", include_str!("../../shaders/common/logits.wgsl")),
    ("row.baseline", include_str!("../../shaders/common/row.baseline.wgsl")),
    ("row.subgroup", include_str!("../../shaders/common/row.subgroup.wgsl")),
    ("dropout", include_str!("../../shaders/common/dropout.wgsl")),
    ("shuffle.baseline", include_str!("../../shaders/common/shuffle.baseline.wgsl")),
    ("shuffle.subgroup", include_str!("../../shaders/common/shuffle.subgroup.wgsl")),
];

fn snippet(name: &str, tier: Tier) -> Option<(&'static str, &'static str)> {
    let find = |full: &str| SNIPPETS.iter().find(|(n, _)| *n == full).copied();
    // A tier without a snippet of its own uses the next lower one.
    Tier::ALL.into_iter().rev().filter(|t| *t <= tier).find_map(|t| find(&format!("{name}.{t}"))).or_else(|| find(name))
}

/// Expands `source` for one tier and set of defines into plain WGSL.
pub fn expand(source: &str, tier: Tier, defines: &Defines) -> Result<String, String> {
    let mut out = Output { enables: Vec::new(), imported: Vec::new(), body: String::with_capacity(source.len() * 2) };
    for (name, value) in defines {
        out.body.push_str(&value.declaration(name));
        if matches!(value, Define::Type(super::Scalar::F16)) {
            out.enable("f16");
        }
    }
    include(source, tier, defines, &mut out)?;
    let enables: String = out.enables.iter().map(|e| format!("enable {e};\n")).collect();
    Ok(enables + &out.body)
}

struct Output {
    enables: Vec<String>,
    imported: Vec<String>,
    body: String,
}

impl Output {
    fn enable(&mut self, extension: &str) {
        if !self.enables.iter().any(|e| e == extension) {
            self.enables.push(extension.to_owned());
        }
    }
}

fn include(source: &str, tier: Tier, defines: &Defines, out: &mut Output) -> Result<(), String> {
    // One entry per open `#if`: (this branch is taken, some branch was taken already).
    let mut open: Vec<(bool, bool)> = Vec::new();
    let lines: Vec<&str> = source.lines().collect();
    let mut next = 0;
    while let Some(line) = lines.get(next) {
        let number = next;
        next += 1;
        let fail = |message: String| Err(format!("line {}: {message}", number + 1));
        let fail_u32 = |message: String| Err(format!("line {}: {message}", number + 1));
        let live = open.iter().all(|(taken, _)| *taken);
        let Some(directive) = line.trim_start().strip_prefix('#') else {
            if live {
                out.body.push_str(line);
                out.body.push('\n');
            }
            continue;
        };
        let directive = directive.split("//").next().unwrap_or_default();
        let mut words = directive.split_whitespace();
        match (words.next().unwrap_or_default(), words.collect::<Vec<_>>().as_slice()) {
            ("if", condition) => {
                let holds = evaluate(condition, defines).or_else(|m| fail(m).map(|()| false))?;
                open.push((holds, holds));
            }
            ("else", []) => match open.last_mut() {
                Some((taken, any)) => {
                    *taken = !*any;
                    *any = true;
                }
                None => return fail("#else without #if".into()),
            },
            ("endif", []) => {
                if open.pop().is_none() {
                    return fail("#endif without #if".into());
                }
            }
            ("for", [name, from, to]) => {
                let mut depth = 1;
                let body = lines[next..].iter().take_while(|line| {
                    let word = line.split_whitespace().next().unwrap_or_default();
                    depth += i32::from(word == "#for") - i32::from(word == "#endfor");
                    depth > 0
                });
                let body: Vec<&str> = body.copied().collect();
                next += body.len() + 1;
                if depth > 0 {
                    return fail("#for without #endfor".into());
                }
                if live {
                    let bound = |word: &str| word.parse().or_else(|_| number_of(word, defines));
                    let (from, to) = (bound(from).or_else(&fail_u32)?, bound(to).or_else(&fail_u32)?);
                    let body = body.join("\n");
                    for value in from..to {
                        let text = body.replace(&format!("{{{name}}}"), &value.to_string());
                        include(&text, tier, defines, out).map_err(|m| format!("in #for {name}: {m}"))?;
                    }
                }
            }
            ("import", [name, arguments @ ..]) => {
                if live {
                    let Some((full, text)) = snippet(name, tier) else {
                        return fail(format!("#import of unknown snippet `{name}`"));
                    };
                    let mut text = std::borrow::Cow::Borrowed(text);
                    for argument in arguments {
                        let Some((key, value)) = argument.split_once('=') else {
                            return fail(format!("#import takes KEY=VALUE, found `{argument}`"));
                        };
                        text = text.replace(&format!("{{{key}}}"), value).into();
                    }
                    let once = format!("{full} {}", arguments.join(" "));
                    if !out.imported.contains(&once) {
                        out.imported.push(once);
                        include(&text, tier, defines, out).map_err(|m| format!("in {full}: {m}"))?;
                    }
                }
            }
            ("enable", [extension]) => {
                if live {
                    out.enable(extension);
                }
            }
            _ => return fail(format!("unknown directive `{}`", line.trim())),
        }
    }
    if open.is_empty() { Ok(()) } else { Err("#if without #endif".into()) }
}

fn number_of(name: &str, defines: &Defines) -> Result<u32, String> {
    match defines.iter().find(|(n, _)| *n == name) {
        Some((_, Define::U32(value))) => Ok(*value),
        _ => Err(format!("`{name}` is neither a number nor a define that holds one")),
    }
}

fn evaluate(condition: &[&str], defines: &Defines) -> Result<bool, String> {
    let lookup = |name: &str| {
        defines
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, v)| *v)
            .ok_or_else(|| format!("#if asks for `{name}`, which is not defined"))
    };
    let truth = |name: &str| match lookup(name)? {
        Define::Bool(b) => Ok(b),
        Define::U32(u) => Ok(u != 0),
        Define::Type(_) => Err(format!("`{name}` is a type, compare it with == or !=")),
    };
    match condition {
        [name] => match name.strip_prefix('!') {
            Some(name) => Ok(!truth(name)?),
            None => truth(name),
        },
        [name, "<", value] => match (number_of(name, defines), value.parse::<u32>()) {
            (Ok(number), Ok(value)) => Ok(number < value),
            _ => Err(format!("`{name} < {value}` needs a define that holds a number, and a number")),
        },
        [name, op @ ("==" | "!="), value] => Ok((lookup(name)?.literal() == *value) == (*op == "==")),
        _ => Err(format!("cannot read condition `{}`", condition.join(" "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shader::Scalar;

    fn run(source: &str, defines: &[(&'static str, Define)]) -> Result<String, String> {
        expand(source, Tier::Baseline, &defines.to_vec())
    }

    #[test]
    fn conditions_choose_branches_and_nest() {
        let source = "#if A\na\n#if B == 2\nb2\n#else\nbx\n#endif\n#else\nno\n#endif\nend\n";
        let text = |a, b| run(source, &[("A", Define::Bool(a)), ("B", Define::U32(b))]).unwrap();
        let tail = |s: String| s.lines().skip(2).map(str::to_owned).collect::<Vec<_>>().join(" ");
        assert_eq!(tail(text(true, 2)), "a b2 end");
        assert_eq!(tail(text(true, 3)), "a bx end");
        assert_eq!(tail(text(false, 2)), "no end");
    }

    #[test]
    fn loops_repeat_and_nest() {
        let text = run("#for i 0 N\n#for j 1 3\na{i}_{j}\n#endfor\n#endfor\n", &[("N", Define::U32(2))]).unwrap();
        assert_eq!(text.lines().skip(1).collect::<Vec<_>>(), ["a0_1", "a0_2", "a1_1", "a1_2"]);
        assert!(run("#for i 0 N\n#endfor\n", &[]).unwrap_err().contains("`N`"));
        assert!(run("#for i 0 2\n", &[]).unwrap_err().contains("#endfor"));
    }

    #[test]
    fn comparisons_need_numbers() {
        let text = run("#if N < 3\nless\n#else\nnot\n#endif\n", &[("N", Define::U32(3))]).unwrap();
        assert_eq!(text.lines().last(), Some("not"));
        assert!(run("#if N < 3\n#endif\n", &[("N", Define::Bool(true))]).unwrap_err().contains("number"));
    }

    #[test]
    fn imports_take_arguments_and_come_once_for_each() {
        let defines: Vec<(&'static str, Define)> =
            ["A_GRID", "A_BITS", "A_EXPONENT", "A_MANTISSA", "B_GRID", "B_BITS", "B_EXPONENT", "B_MANTISSA"]
                .map(|n| (n, Define::U32(1)))
                .to_vec();
        let text = run("#import packed P=A p=a\n#import packed P=B p=b\n#import packed P=B p=b\n", &defines).unwrap();
        assert_eq!(text.matches("fn a_codes4(").count(), 1);
        assert_eq!(text.matches("fn b_codes4(").count(), 1);
        assert_eq!(text.matches("struct PackedInfo").count(), 1);
        assert!(run("#import packed P\n", &[]).unwrap_err().contains("KEY=VALUE"));
    }

    #[test]
    fn unknown_names_are_errors() {
        assert!(run("#import nowhere\n", &[]).unwrap_err().contains("nowhere"));
        assert!(run("#if NOPE\n#endif\n", &[]).unwrap_err().contains("NOPE"));
        assert!(run("#iff A\n", &[]).unwrap_err().contains("#iff"));
        assert!(run("#if A\n", &[("A", Define::Bool(true))]).unwrap_err().contains("#endif"));
        assert!(run("#endif\n", &[]).is_err());
        assert!(run("#else\n", &[]).is_err());
    }

    #[test]
    fn defines_become_constants_and_enables_come_first() {
        let text = run("x\n", &[("N", Define::U32(7)), ("Elem", Define::Type(Scalar::F16))]).unwrap();
        assert_eq!(text, "enable f16;\nconst N: u32 = 7u;\nalias Elem = f16;\nx\n");
    }
}
