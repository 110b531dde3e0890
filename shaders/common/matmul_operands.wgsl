// Dense operands of a product. Defines: InA, InB, VEC.
#if VEC
@group(0) @binding(1) var<storage, read> a: array<vec4<InA>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<InB>>;
#else
@group(0) @binding(1) var<storage, read> a: array<InA>;
@group(0) @binding(2) var<storage, read> b: array<InB>;
#endif
