// The next column k_{p} of the operand of tiled_codes.wgsl, and what changes where a group begins there.
            let k_{p} = k0 + {p}_col * 4u;
            if {p}_group(k_{p}) != group_{p} {
                group_{p} = {p}_group(k_{p});
#for i 0 LOADS
                scale_{p}{i} = {p}_scale(row_{p}{i}, group_{p});
                zero_{p}{i} = {p}_zero(row_{p}{i}, group_{p});
#endfor
            }
