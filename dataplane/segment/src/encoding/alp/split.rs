//! Split blocks (the paper's ALP-RD, "real doubles"): few different heads, bit-packed tails.
//!
//! Owns the choice of where to cut. The high bits of a value (sign, exponent, perhaps some of the mantissa) are one
//! of at most eight per block and become a code of 0 to 3 bits; the low bits are packed as they are. Other heads are
//! exceptions. Payload: eight heads `u16`, code bits `u8`, 7 unused, `128 * code bits` of codes, `128 * width` of
//! tails, then the exceptions with their heads. Called by `alp`.
//!
//! Why not Gorilla or Chimp: both write each value as the XOR with one before it in a variable number of bits, so
//! that nothing can be read but from the front, one value after another. Nor are they smaller (bits a value, from a
//! model of each, 20,000 values): uniform in 0..1: split 55.1, Gorilla 58.0, Chimp 57.8; normal: 56.8, 66.0, 63.6;
//! only a slow random walk, where neighbours share bits, gives 51.0, 53.0, 48.6.

use std::mem::MaybeUninit;

use super::{EncodedBlock, Exceptions, KIND_SPLIT, pays};
use crate::encoding::{packed, u16_at};
use crate::kernels::{Float, Word, floats, with_word};

/// Bytes before the packed codes.
const PREFIX_BYTES: usize = 24;
/// The most heads of a block.
const HEADS_MAX: usize = 8;
/// Bits of a code.
const CODE_BITS_MAX: usize = 3;
/// Bits of a head.
const HEAD_BITS_MAX: usize = 16;
/// Values looked at in a row group.
const SAMPLE_VALUES: usize = 512;

/// Where to cut, and which heads have codes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Split {
    tail_bits: usize,
    code_bits: usize,
    /// By code; the first repeated where there are fewer.
    heads: [u16; HEADS_MAX],
}

/// The cheapest cut for a sample of these blocks; `None` when none pays.
pub(super) fn choose<'v, F: Float>(blocks: impl Iterator<Item = &'v [F]> + Clone) -> Option<Split> {
    let stride = (blocks.clone().map(<[F]>::len).sum::<usize>() / SAMPLE_VALUES).max(1);
    let mut bits: Vec<u64> = blocks.flatten().step_by(stride).map(|value| value.bits()).collect();
    if bits.is_empty() {
        return None;
    }
    bits.sort_unstable();
    let value_bits = F::BYTES * 8;
    let plain_cost = bits.len() * value_bits;
    let mut best: Option<(usize, Split)> = None;
    for tail_bits in value_bits - HEAD_BITS_MAX..value_bits {
        // Sorted: equal heads are neighbours.
        let mut heads: Vec<(usize, u16)> = Vec::new();
        for bits in &bits {
            let head = (bits >> tail_bits) as u16;
            match heads.last_mut() {
                Some((count, last)) if *last == head => *count += 1,
                _ => heads.push((1, head)),
            }
        }
        heads.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        for code_bits in 0..=CODE_BITS_MAX {
            let coded = &heads[..heads.len().min(1 << code_bits)];
            let missed = bits.len() - coded.iter().map(|(count, _)| count).sum::<usize>();
            let cost = bits.len() * (tail_bits + code_bits) + missed * 32;
            if pays(cost, plain_cost) && best.is_none_or(|(least, _)| cost < least) {
                let mut split = Split { tail_bits, code_bits, heads: [coded[0].1; HEADS_MAX] };
                for (slot, (_, head)) in split.heads.iter_mut().zip(coded) {
                    *slot = *head;
                }
                best = Some((cost, split));
            }
        }
    }
    best.map(|(_, split)| split)
}

/// Encode.
pub(super) fn encode<F: Float>(block: &[F], split: &Split) -> EncodedBlock {
    let mut found: Vec<(u16, u64)> = Vec::new();
    let (mut codes, mut tails) = ([0i64; 1024], [0i64; 1024]);
    for (position, ((code, tail), value)) in codes.iter_mut().zip(&mut tails).zip(block).enumerate() {
        let head = (value.bits() >> split.tail_bits) as u16;
        *tail = value.bits() as i64;
        match split.heads.iter().position(|known| *known == head) {
            Some(known) => *code = known as i64,
            None => found.push((position as u16, head.into())),
        }
    }
    let packed_bytes = (split.code_bits + split.tail_bits) * 128;
    let mut payload = Vec::with_capacity(PREFIX_BYTES + packed_bytes + found.len() * 4);
    for head in split.heads {
        payload.extend_from_slice(&head.to_le_bytes());
    }
    payload.extend_from_slice(&[split.code_bits as u8, 0, 0, 0, 0, 0, 0, 0]);
    packed::encode(&codes, 0, split.code_bits, &mut payload);
    // Packing keeps the low bits only.
    packed::encode(&tails, 0, split.tail_bits, &mut payload);
    Exceptions::encode(&found, 2, &mut payload);
    EncodedBlock { kind: KIND_SPLIT, width: split.tail_bits, exceptions: found.len(), payload }
}

/// A split block, read in place. Compare decodes first: tails have no order of their own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SplitBlock<'a> {
    /// By code, shifted to their place.
    heads: [u64; HEADS_MAX],
    code_bits: usize,
    codes: &'a [u8],
    tail_bits: usize,
    tails: &'a [u8],
    exceptions: Exceptions<'a>,
}

impl<'a> SplitBlock<'a> {
    /// The front of `bytes`; `None` when they are too short or say what can't be.
    pub(super) fn open<F: Float>(bytes: &'a [u8], tail_bits: usize, exceptions: usize) -> Option<Self> {
        let value_bits = F::BYTES * 8;
        let (prefix, rest) = bytes.split_at_checked(PREFIX_BYTES)?;
        let code_bits = usize::from(prefix[16]);
        if code_bits > CODE_BITS_MAX || !(value_bits - HEAD_BITS_MAX..value_bits).contains(&tail_bits) {
            return None;
        }
        let (codes, rest) = rest.split_at_checked(code_bits * 128)?;
        let (tails, rest) = rest.split_at_checked(tail_bits * 128)?;
        let heads = std::array::from_fn(|code| u64::from(u16_at(prefix, code * 2)) << tail_bits);
        let exceptions = Exceptions::open(rest, exceptions, 2)?;
        Some(SplitBlock { heads, code_bits, codes, tail_bits, tails, exceptions })
    }

    /// Decode.
    pub(super) fn decode<F: Float>(&self, out: &mut [F; 1024]) {
        let mut codes = MaybeUninit::uninit();
        let codes = u8::unpack(self.code_bits, self.codes, &mut codes);
        with_word!(self.tail_bits, W => {
            let mut tails = MaybeUninit::uninit();
            floats::join::<W, F>(codes, &self.heads, <W as Word>::unpack(self.tail_bits, self.tails, &mut tails), out);
        });
        for (position, head) in self.exceptions.iter() {
            out[position] = self.replace_head(out[position], head);
        }
    }

    /// Take: few rows, each by itself.
    pub(super) fn take<F: Float>(&self, indices: &[u16], out: &mut [F]) {
        for (out, index) in out.iter_mut().zip(indices) {
            let code = packed::get(self.codes, self.code_bits, usize::from(*index)) as usize % HEADS_MAX;
            *out = F::from_bits(self.heads[code] | packed::get(self.tails, self.tail_bits, usize::from(*index)));
        }
        self.exceptions.among(indices, |k, head| out[k] = self.replace_head(out[k], head));
    }

    fn replace_head<F: Float>(&self, value: F, head: u64) -> F {
        F::from_bits(head << self.tail_bits | value.bits() & ((1 << self.tail_bits) - 1))
    }
}
