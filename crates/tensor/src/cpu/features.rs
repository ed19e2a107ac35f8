//! Which vector unit the hand-written kernels run on: found once at run time, so that one binary serves every
//! x86-64 machine; other architectures take the portable code, which the compiler vectorises for its target.

/// What the widest usable vector unit offers, in falling order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 (F, BW, DQ, VL) with bf16 dot products.
    Avx512Bf16,
    /// AVX-512 (F, BW, DQ, VL).
    Avx512,
    /// Whatever the compiler vectorises for: AVX2 where `pulp` finds it, NEON, SSE2.
    Portable,
}

impl Isa {
    /// The unit of this machine.
    pub fn detect() -> Isa {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            return if is_x86_feature_detected!("avx512bf16") { Isa::Avx512Bf16 } else { Isa::Avx512 };
        }
        Isa::Portable
    }

    /// True for the two AVX-512 kinds.
    pub fn has_avx512(self) -> bool {
        self != Isa::Portable
    }

    /// This kind and the lesser ones, which this machine also runs (for tests and comparisons).
    pub fn available() -> Vec<Isa> {
        let all = [Isa::Avx512Bf16, Isa::Avx512, Isa::Portable];
        all.into_iter().skip_while(|&i| i != Isa::detect()).collect()
    }
}

/// True where a multiply-add is one instruction; elsewhere `mul_add` is a slow library call and must be avoided.
pub fn has_fma() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("fma") && is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    return cfg!(target_arch = "aarch64");
}
