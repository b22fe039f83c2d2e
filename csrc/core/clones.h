// FINERCAM_CLONES before a function: compiled for AVX-512, AVX2 + FMA and the baseline, chosen once when the library
// is loaded. What such a function calls must be inlined into it. Elsewhere (aarch64) the baseline has what it needs.
#pragma once

#ifdef FINERCAM_HAS_TARGET_CLONES
#define FINERCAM_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FINERCAM_CLONES
#endif
