// I is V as an input of elements of type In is stored; E is that of results.
#import elem
#if WIDTH == 4
alias I = vec4<In>;
#else
alias I = In;
#endif
