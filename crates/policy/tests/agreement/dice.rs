//! Choices: from a seed, or from the bytes that a fuzzer turns.

/// A source of choices. Ends never: when the bytes are used up, everything is the first choice.
pub(crate) struct Dice<'a> {
    seed: u64,
    bytes: Option<&'a [u8]>,
}

impl<'a> Dice<'a> {
    pub(crate) fn seeded(seed: u64) -> Self {
        Self { seed, bytes: None }
    }

    pub(crate) fn of(bytes: &'a [u8]) -> Self {
        Self { seed: 0, bytes: Some(bytes) }
    }

    /// A number below `sides`, which is at most 256.
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        match &mut self.bytes {
            Some(bytes) => match bytes.split_first() {
                Some((first, rest)) => {
                    *bytes = rest;
                    usize::from(*first) % sides.max(1)
                }
                None => 0,
            },
            None => {
                // SplitMix64.
                self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut mixed = self.seed;
                mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                usize::try_from((mixed ^ (mixed >> 31)) % sides.max(1) as u64).unwrap_or(0)
            }
        }
    }

    /// Whether one of `sides` comes.
    pub(crate) fn one_in(&mut self, sides: usize) -> bool {
        self.roll(sides) == sides - 1
    }

    pub(crate) fn pick<'b, T: ?Sized>(&mut self, from: &[&'b T]) -> &'b T {
        from[self.roll(from.len())]
    }

    /// Some of them, in their order.
    pub(crate) fn some<'b, T: ?Sized>(&mut self, from: &[&'b T]) -> Vec<&'b T> {
        from.iter().filter(|_| self.one_in(2)).copied().collect()
    }
}
