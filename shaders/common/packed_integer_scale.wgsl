                // The end of a group in packed_integer.wgsl: integer sums become exact sums of values, which are scaled and added up.
#for j 0 EDGE
                let at{j} = ({j}u * 16u + tx) * PARTS + v;
                let s{j} = scales_b[at{j}];
                let h{j} = excess_b[at{j}];
                let r{j} = units_b * sum_b({j}u * 16u + tx, v, shift) + length * h{j};
#endfor
#for i 0 EDGE
                {
                    let at = ({i}u * 16u + ty) * PARTS + v;
                    let s = scales_a[at];
                    let h = excess_a[at];
                    let r = units_a * sum_a({i}u * 16u + ty, v, shift);
#for j 0 EDGE
                    v{i}_{j} += f32(units_a * units_b * c{i}_{j} + h * r{j} + h{j} * r) * s * s{j};
                    c{i}_{j} = 0;
#endfor
                }
#endfor
