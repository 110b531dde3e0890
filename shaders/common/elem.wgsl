// E is V as it is stored, in elements of type Elem.
#import vector
#if WIDTH == 4
alias E = vec4<Elem>;
#else
alias E = Elem;
#endif
