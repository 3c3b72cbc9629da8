//! The codes that a walk compares: a whole number of cache lines a node, and their inner products with bytes.
//!
//! Owns [`Codes`] and its kernels. Called by the graph's builder and search.
//!
//! Layout: a line of 64 bytes holds 64 components of 7 bits, a byte each, or 128 of 4 bits: byte `i` has component `i` in
//! its low half and component `64 + i` in its high half. Missing components are zero, as are the query's.
//!
//! Seven bits rather than eight: VPMADDUBSW adds pairs of products in 16 bits, and `2 * 127 * 127` is the most that fits.
//! It also makes a code a valid signed byte, so that two nodes are compared by the kernel that compares a query.
//!
//! Invariants
//! - Products are exact integers, the same at every SIMD level.
//!
//! Cost sketch: 384 components of 4 bits are 3 lines of about 18 instructions on AVX2, 7 with VNNI, and a reduction of 8:
//! 5 to 8 ns when the lines are in the L2 cache. The lines' way from memory costs more.

use crate::{
    Result, VectorError,
    rabitq::quantise,
    simd::{Level, level},
};

/// One cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u8; 64]);

/// What turns a product into a distance: `offset + slope * <u - middle, q>` for a query, and more for two nodes. Side by
/// side, as a comparison with a node whose terms were not fetched costs more than all its arithmetic.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Terms {
    /// Squared length (with the lifted component).
    pub(super) offset: f32,
    /// Minus twice the scale.
    pub(super) slope: f32,
    /// The component that the inner product adds.
    pub(super) lift: f32,
    /// Sum of the codes.
    pub(super) sum: i32,
}

/// The nearest integer, the even one of two, of at most 127 either way: what `round_ties_even` says, which without SSE 4.1
/// is a call for each number. A sum with 1.5 * 2^23 has no bits left for a fraction.
#[inline(always)]
fn rounded(x: f32) -> i8 {
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i8
}

/// Codes of all nodes.
#[derive(Clone, Debug)]
pub(super) struct Codes {
    pub(super) bits: u8,
    /// Rotated components.
    pub(super) padded: usize,
    pub(super) lines_per_node: usize,
    pub(super) lines: Vec<Line>,
    pub(super) terms: Vec<Terms>,
}

/// A vector as bytes, to be compared with codes.
#[derive(Clone, Debug, Default)]
pub(super) struct CodeQuery {
    /// As many as the lines of a node have components.
    pub(super) bytes: Vec<i8>,
    step: f32,
    /// The middle of the codes times the sum of the bytes, times the step.
    middle: f32,
}

impl CodeQuery {
    /// Rounds a rotated vector.
    pub(super) fn set(&mut self, codes: &Codes, rotated: &[f32]) {
        let greatest = rotated.iter().fold(0.0f32, |m, q| m.max(q.abs()));
        let inverse = if greatest > 0.0 { 127.0 / greatest } else { 0.0 };
        self.bytes.clear();
        self.bytes.extend(rotated.iter().map(|q| rounded(q * inverse)));
        let sum: i32 = self.bytes.iter().map(|b| i32::from(*b)).sum();
        self.bytes.resize(codes.lines_per_node * Codes::components_per_line(codes.bits), 0);
        self.step = greatest / 127.0;
        self.middle = codes.middle() * sum as f32 * self.step;
    }

    /// The distance, less what is the same for all nodes.
    #[inline(always)]
    pub(super) fn distance(&self, product: i32, terms: Terms) -> f32 {
        terms.offset + terms.slope * (product as f32 * self.step - self.middle)
    }
}

impl Codes {
    fn components_per_line(bits: u8) -> usize {
        if bits == 4 { 128 } else { 64 }
    }

    /// No codes yet, of `bits` (4 or 7) for vectors of `padded` rotated components.
    pub(super) fn new(bits: u8, padded: usize) -> Result<Self> {
        if bits != 4 && bits != 7 {
            return Err(VectorError::parameter("bits of a graph's codes", bits, "4 or 7"));
        }
        let lines_per_node = padded.div_ceil(Self::components_per_line(bits));
        Ok(Codes { bits, padded, lines_per_node, lines: Vec::new(), terms: Vec::new() })
    }

    /// Greatest code, halved.
    pub(super) fn middle(&self) -> f32 {
        ((1u32 << self.bits) - 1) as f32 * 0.5
    }

    pub(super) fn count(&self) -> usize {
        self.terms.len()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.lines.len() * 64 + self.terms.len() * size_of::<Terms>()
    }

    /// Appends a rotated vector. `codes` is scratch of `padded` bytes, and holds the codes afterwards.
    pub(super) fn push(&mut self, rotated: &[f32], codes: &mut [u8]) {
        let quantised = quantise(rotated, self.bits, codes);
        for some in codes.chunks(Self::components_per_line(self.bits)) {
            let mut line = Line([0; 64]);
            for (i, code) in some.iter().enumerate() {
                line.0[i % 64] |= code << (i / 64 * 4);
            }
            self.lines.push(line);
        }
        let sum = codes.iter().map(|code| i32::from(*code)).sum();
        self.terms.push(Terms { offset: quantised.norm_squared, slope: -2.0 * quantised.scale, lift: 0.0, sum });
    }

    /// Gives a node the component that the inner product adds, by its square.
    pub(super) fn lift(&mut self, node: usize, square: f32) {
        let terms = &mut self.terms[node];
        (terms.offset, terms.lift) = (terms.offset + square, square.sqrt());
    }

    /// Appends a node of other codes of the same shape.
    pub(super) fn push_from(&mut self, other: &Codes, node: usize) {
        self.lines.extend_from_slice(&other.lines[node * self.lines_per_node..][..self.lines_per_node]);
        self.terms.push(other.terms[node]);
    }

    /// The code of a node of 7 bits, as the bytes that it is compared by.
    pub(super) fn bytes_of(&self, node: usize, out: &mut Vec<i8>) {
        out.clear();
        let lines = &self.lines[node * self.lines_per_node..][..self.lines_per_node];
        lines.iter().for_each(|line| out.extend(line.0.iter().map(|b| *b as i8)));
    }

    /// Asks for the lines of a node.
    #[inline(always)]
    pub(super) fn prefetch(&self, node: usize) {
        crate::simd::prefetch(&self.lines, node * self.lines_per_node, self.lines_per_node);
        crate::simd::prefetch(&self.terms, node, 1);
    }

    /// Writes the product of `query` with each of `nodes`.
    pub(super) fn products(&self, query: &[i8], nodes: &[u32], out: &mut [i32]) {
        assert!(query.len() == self.lines_per_node * Self::components_per_line(self.bits) && nodes.len() == out.len());
        match (level(), self.bits) {
            // SAFETY: the level in effect is never above what the CPU supports.
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512Vnni, 4) => unsafe { x86::four_vnni(self, query, nodes, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512Vnni, _) => unsafe { x86::seven_vnni(self, query, nodes, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512 | Level::Avx2, 4) => unsafe { x86::four_avx2(self, query, nodes, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512 | Level::Avx2, _) => unsafe { x86::seven_avx2(self, query, nodes, out) },
            (Level::Portable, _) => self.products_portable(query, nodes, out),
        }
    }

    #[inline(always)]
    fn node(&self, node: u32) -> &[Line] {
        &self.lines[node as usize * self.lines_per_node..][..self.lines_per_node]
    }

    fn products_portable(&self, query: &[i8], nodes: &[u32], out: &mut [i32]) {
        let components = Self::components_per_line(self.bits);
        for (node, out) in nodes.iter().zip(out) {
            let lines = self.node(*node).iter().zip(query.chunks_exact(components));
            *out = lines
                .map(|(line, query)| {
                    let code = |i: usize| match components {
                        128 => i32::from(line.0[i % 64] >> (i / 64 * 4) & 15),
                        _ => i32::from(line.0[i]),
                    };
                    query.iter().enumerate().map(|(i, q)| code(i) * i32::from(*q)).sum::<i32>()
                })
                .sum();
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::*;

    #[inline]
    #[target_feature(enable = "avx2")]
    fn sum_of_eight(sums: __m256i) -> i32 {
        let four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
        let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
        _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)))
    }

    #[target_feature(enable = "avx2,bmi1,bmi2")]
    pub(super) fn four_avx2(codes: &Codes, query: &[i8], nodes: &[u32], out: &mut [i32]) {
        let (low, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
        for (node, out) in nodes.iter().zip(out) {
            let mut sums = _mm256_setzero_si256();
            for (line, query) in codes.node(*node).iter().zip(query.chunks_exact(128)) {
                // SAFETY: a line has 64 bytes, the chunk 128.
                let (a, b, q) = unsafe {
                    let at = line.0.as_ptr().cast::<__m256i>();
                    let q = query.as_ptr().cast::<__m256i>();
                    let q = [
                        _mm256_loadu_si256(q),
                        _mm256_loadu_si256(q.add(1)),
                        _mm256_loadu_si256(q.add(2)),
                        _mm256_loadu_si256(q.add(3)),
                    ];
                    (_mm256_load_si256(at), _mm256_load_si256(at.add(1)), q)
                };
                // Four pairs of at most 2 * 15 * 127 fit 16 bits.
                let p0 = _mm256_maddubs_epi16(_mm256_and_si256(a, low), q[0]);
                let p1 = _mm256_maddubs_epi16(_mm256_and_si256(b, low), q[1]);
                let p2 = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16::<4>(a), low), q[2]);
                let p3 = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16::<4>(b), low), q[3]);
                let pairs = _mm256_add_epi16(_mm256_add_epi16(p0, p1), _mm256_add_epi16(p2, p3));
                sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, ones));
            }
            *out = sum_of_eight(sums);
        }
    }

    #[target_feature(enable = "avx2,bmi1,bmi2")]
    pub(super) fn seven_avx2(codes: &Codes, query: &[i8], nodes: &[u32], out: &mut [i32]) {
        let ones = _mm256_set1_epi16(1);
        for (node, out) in nodes.iter().zip(out) {
            let mut sums = [_mm256_setzero_si256(); 2];
            for (line, query) in codes.node(*node).iter().zip(query.chunks_exact(64)) {
                for (half, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: a line and a chunk have 64 bytes each.
                    let (code, q) = unsafe {
                        let code = line.0.as_ptr().cast::<__m256i>().add(half);
                        (_mm256_load_si256(code), _mm256_loadu_si256(query.as_ptr().cast::<__m256i>().add(half)))
                    };
                    let pairs = _mm256_maddubs_epi16(code, q);
                    *sums = _mm256_add_epi32(*sums, _mm256_madd_epi16(pairs, ones));
                }
            }
            *out = sum_of_eight(_mm256_add_epi32(sums[0], sums[1]));
        }
    }

    #[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi1,bmi2")]
    pub(super) fn four_vnni(codes: &Codes, query: &[i8], nodes: &[u32], out: &mut [i32]) {
        let low = _mm512_set1_epi8(15);
        for (node, out) in nodes.iter().zip(out) {
            let mut sums = [_mm512_setzero_si512(); 2];
            for (line, query) in codes.node(*node).iter().zip(query.chunks_exact(128)) {
                // SAFETY: a line has 64 bytes, the chunk 128.
                let (code, q) = unsafe {
                    let q = query.as_ptr().cast::<__m512i>();
                    let q = [_mm512_loadu_si512(q), _mm512_loadu_si512(q.add(1))];
                    (_mm512_load_si512(line.0.as_ptr().cast()), q)
                };
                sums[0] = _mm512_dpbusd_epi32(sums[0], _mm512_and_si512(code, low), q[0]);
                sums[1] = _mm512_dpbusd_epi32(sums[1], _mm512_and_si512(_mm512_srli_epi16::<4>(code), low), q[1]);
            }
            *out = _mm512_reduce_add_epi32(_mm512_add_epi32(sums[0], sums[1]));
        }
    }

    #[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi1,bmi2")]
    pub(super) fn seven_vnni(codes: &Codes, query: &[i8], nodes: &[u32], out: &mut [i32]) {
        for (node, out) in nodes.iter().zip(out) {
            let mut sums = _mm512_setzero_si512();
            for (line, query) in codes.node(*node).iter().zip(query.chunks_exact(64)) {
                // SAFETY: a line and a chunk have 64 bytes each.
                let (code, q) =
                    unsafe { (_mm512_load_si512(line.0.as_ptr().cast()), _mm512_loadu_si512(query.as_ptr().cast())) };
                sums = _mm512_dpbusd_epi32(sums, code, q);
            }
            *out = _mm512_reduce_add_epi32(sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::at_every_level;

    #[test]
    fn rounding_is_to_the_nearest_and_even() {
        for step in -127 * 8..=127 * 8 {
            let x = step as f32 / 8.0;
            assert_eq!(rounded(x), x.round_ties_even() as i8, "{x}");
        }
    }

    #[test]
    fn products_are_exact_at_every_level() {
        let mut state = 3u64;
        let mut byte = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        for bits in [4, 7] {
            for padded in [64, 128, 192, 384, 1024] {
                let mut codes = Codes::new(bits, padded).unwrap();
                for _ in 0..9 {
                    let vector: Vec<f32> = (0..padded).map(|_| f32::from(byte()) - 127.5).collect();
                    codes.push(&vector, &mut vec![0; padded]);
                }
                for line in codes.lines.iter_mut().take(codes.lines_per_node) {
                    line.0.fill(if bits == 4 { 255 } else { 127 });
                }
                let components = codes.lines_per_node * Codes::components_per_line(bits);
                let query: Vec<i8> = (0..components).map(|_| (byte() as i8).max(-127)).collect();
                let nodes = [0u32, 8, 3, 1, 2, 7, 0];
                for query in [query, vec![127; components], vec![-127; components]] {
                    let mut expected = [0; 7];
                    codes.products_portable(&query, &nodes, &mut expected);
                    at_every_level(|level| {
                        let mut out = [0; 7];
                        codes.products(&query, &nodes, &mut out);
                        assert_eq!(out, expected, "{level:?} {bits} {padded}");
                    });
                }
            }
        }
    }
}
