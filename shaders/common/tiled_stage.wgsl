// Writes the loaded next_a{i} and next_b{i} to the tiles. AT tells several places of a shader apart.
#for i 0 LOADS
#if FORM == 2
        tile_a[to_a + {i}u * A_ROWS * STRIDE] = next_a{i};
#else
#for e 0 4
        stage_a(to_a + {i}u * A_ROWS / 4u + {e}u * STRIDE, part_a, next_a{i}[{e}]);
#endfor
#endif
#if FORM == 0
#for e 0 4
        stage_b(to_b + {i}u * B_ROWS / 4u + {e}u * STRIDE, part_b, next_b{i}[{e}]);
#endfor
#else
        tile_b[to_b + {i}u * B_ROWS * STRIDE] = next_b{i};
#endif
#endfor
