//! Cooperative matrices in plain WGSL, for tests of their kernels on adapters without them: far slower, and apart from the rounding of sums the
//! same.
//!
//! Of a 16 x 16 matrix that a subgroup of 32 shares, lane `l` has row `l / 2` of a left operand, columns `8 (l % 2) ..+ 8` of a right one, and
//! of an accumulator where they meet: so it multiplies without the others. A lane is a local invocation index modulo 32; nothing here needs
//! subgroups. Sums are rounded once per product, in ascending order of K.

use std::fmt::Write as _;

/// A call, cut into what is written between its parentheses.
struct Call<'a> {
    arguments: Vec<&'a str>,
    /// What follows the call.
    rest: &'a str,
}

/// The arguments of a call whose opening parenthesis `text` starts behind.
fn call(text: &str) -> Result<Call<'_>, String> {
    let (mut depth, mut start, mut arguments) = (0, 0, Vec::new());
    for (i, c) in text.char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' if depth == 0 => {
                arguments.push(text[start..i].trim());
                return Ok(Call { arguments, rest: &text[i + 1..] });
            }
            ')' | ']' => depth -= 1,
            ',' if depth == 0 => {
                arguments.push(text[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    Err("a call without its end".into())
}

/// `&name[place]` as name and place.
fn element(pointer: &str) -> Result<(&str, &str), String> {
    let parts = pointer.strip_prefix('&').and_then(|p| p.strip_suffix(']')).and_then(|p| p.split_once('['));
    parts.ok_or_else(|| format!("expected a pointer to an element, found `{pointer}`"))
}

/// The calls that load a matrix, the functions that stand for them, and how many vec4 of a lane's registers each fills.
const LOADS: [(&str, &str, u32); 5] = [
    ("coopLoadT<coop_mat16x16<f16, A>>(", "load_rows_a", 4),
    ("coopLoad<coop_mat16x16<f16, A>>(", "load_columns_a", 4),
    ("coopLoadT<coop_mat16x16<f16, B>>(", "load_rows_b", 32),
    ("coopLoad<coop_mat16x16<f16, B>>(", "load_columns_b", 32),
    ("coopLoadT<coop_mat16x16<f32, C>>(", "load_rows_c", 0),
];

/// Rewrites `source`, which has one entry point with a parameter `index`, the local invocation index.
pub(super) fn rewrite(source: &str) -> Result<String, String> {
    let mut out = String::with_capacity(source.len() + 4096);
    let mut functions: Vec<(&str, &str)> = Vec::new();
    // Operands live in one private array, each place that loads one in a part of its own: values would be copied into every product.
    let mut held = 0;
    let mut rest = source;
    while let Some(at) = rest.find("coop") {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let load = LOADS.iter().find_map(|(call, name, size)| Some((*name, *size, from.strip_prefix(call)?)));
        if let Some((name, size, inside)) = load {
            let Call { arguments, rest: after } = call(inside)?;
            let [pointer, stride] = arguments[..] else { return Err("coopLoad takes two arguments".into()) };
            let (array, place) = element(pointer)?;
            functions.push((name, array));
            let _ = write!(out, "{name}_{array}({place}, {stride}, {held}u)");
            held += size;
            rest = after;
        } else if let Some(inside) = from.strip_prefix("coopStoreT(") {
            let Call { arguments, rest: after } = call(inside)?;
            let [matrix, pointer, stride] = arguments[..] else {
                return Err("coopStoreT takes three arguments".into());
            };
            let (array, place) = element(pointer)?;
            functions.push(("store_rows", array));
            let _ = write!(out, "store_rows_{array}({matrix}, {place}, {stride})");
            rest = after;
        } else if let Some(after) = from.strip_prefix("coopMultiplyAdd(") {
            out.push_str("multiply_add(");
            rest = after;
        } else if let Some(after) = from.strip_prefix("coop_mat16x16<f32, C>()") {
            out.push_str("Accumulator()");
            rest = after;
        } else {
            // A comment or a name.
            out.push_str("coop");
            rest = &from[4..];
        }
    }
    out.push_str(rest);
    let out = out.replace("enable wgpu_cooperative_matrix;", "");
    let main = out.find("fn main(").ok_or("no entry point")?;
    let body = main + out[main..].find('{').ok_or("an entry point without a body")? + 1;
    let begin = "\n    matrix_lane = index % 32u;\n    matrix_one = 1u + index / 65536u;\n";
    let mut out = format!("{}{begin}{}{PLAIN}", &out[..body], &out[body..]);
    let _ = writeln!(out, "var<private> matrices: array<vec4<f32>, {}>;", held.max(1));
    functions.sort_unstable();
    functions.dedup();
    for (function, array) in functions {
        let scalar = ["f16", "f32"].iter().any(|of| out.contains(&format!("{array}: array<{of}")));
        out.push_str(&accessor(function, array, scalar)?);
    }
    Ok(out)
}

/// Loops step by `matrix_one`, so that no compiler unrolls them: a product is some 500 operations.
const PLAIN: &str = "
var<private> matrix_lane: u32;
var<private> matrix_one: u32;
struct Accumulator { left: vec4<f32>, right: vec4<f32> }
fn multiply_add(a: u32, b: u32, c: Accumulator) -> Accumulator {
    var sum = c;
    for (var k = 0u; k < 16u; k += matrix_one) {
        let x = vec4<f32>(matrices[a + k / 4u][k % 4u]);
        sum.left = fma(x, matrices[b + 2u * k], sum.left);
        sum.right = fma(x, matrices[b + 2u * k + 1u], sum.right);
    }
    return sum;
}
";

/// A function that loads or stores a lane's part of a matrix in `array`, of vec4 or, if `scalar`, of numbers.
fn accessor(function: &str, array: &str, scalar: bool) -> Result<String, String> {
    // Four neighbours, `by` vec4 behind a place that counts elements of the array.
    let four = |place: &str, by: &str| match scalar {
        true => {
            let at = |i: u32| format!("f32({array}[{place} + ({by}) * 4u + {i}u])");
            format!("vec4<f32>({}, {}, {}, {})", at(0), at(1), at(2), at(3))
        }
        false => format!("vec4<f32>({array}[{place} + {by}])"),
    };
    let row = "at + matrix_lane / 2u * stride";
    let half = "matrix_lane % 2u * 2u";
    let head = format!("fn {function}_{array}(at: u32, stride: u32, to: u32)");
    let body = match function {
        "load_rows_a" => {
            let part = four(row, "i");
            format!(
                "-> u32 {{ for (var i = 0u; i < 4u; i += matrix_one) {{ matrices[to + i] = {part}; }} return to; }}"
            )
        }
        // A lane's element of column k is in vec4 `row / 4` of it.
        "load_columns_a" => {
            let part = four("at + k * stride", "matrix_lane / 8u");
            format!(
                "-> u32 {{ for (var k = 0u; k < 16u; k += matrix_one) {{
                    let part = {part};
                    matrices[to + k / 4u][k % 4u] = part[matrix_lane / 2u % 4u];
                }} return to; }}"
            )
        }
        "load_rows_b" => {
            let [left, right] = [0, 1].map(|i| four("at + k * stride", &format!("{half} + {i}u")));
            format!(
                "-> u32 {{ for (var k = 0u; k < 16u; k += matrix_one) {{
                    matrices[to + 2u * k] = {left};
                    matrices[to + 2u * k + 1u] = {right};
                }} return to; }}"
            )
        }
        "load_columns_b" => {
            let part = four("at + (matrix_lane % 2u * 8u + n) * stride", "i");
            format!(
                "-> u32 {{ for (var n = 0u; n < 8u; n += matrix_one) {{
                    for (var i = 0u; i < 4u; i += matrix_one) {{
                        let part = {part};
                        let row = to + 8u * i + n / 4u;
                        matrices[row][n % 4u] = part.x;
                        matrices[row + 2u][n % 4u] = part.y;
                        matrices[row + 4u][n % 4u] = part.z;
                        matrices[row + 6u][n % 4u] = part.w;
                    }}
                }} return to; }}"
            )
        }
        "load_rows_c" => {
            let [left, right] = [0, 1].map(|i| four(row, &format!("{half} + {i}u")));
            format!("-> Accumulator {{ return Accumulator({left}, {right}); }}")
        }
        "store_rows" => {
            let parts = if scalar {
                let one = |i: u32| {
                    let (side, part) = (["left", "right"][i as usize / 4], i % 4);
                    format!("{array}[{row} + matrix_lane % 2u * 8u + {i}u] = m.{side}[{part}];")
                };
                (0..8).map(one).collect::<String>()
            } else {
                format!("{array}[{row} + {half}] = m.left; {array}[{row} + {half} + 1u] = m.right;")
            };
            return Ok(format!("fn store_rows_{array}(m: Accumulator, at: u32, stride: u32) {{ {parts} }}\n"));
        }
        other => return Err(format!("no such access as {other}")),
    };
    Ok(format!("{head} {body}\n"))
}
