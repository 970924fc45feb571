//! Field lines of a message: names and values in one buffer that is used again for the next message.

use std::fmt;

/// A field section in the order in which it came. Names are in lower case; a name may come more than once.
///
/// One buffer and one list, both kept by [`Fields::clear`]: once warm, a head costs no allocation.
///
/// `Debug` prints names only: values may be tokens.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Fields {
    text: Vec<u8>,
    lines: Vec<Line>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    start: u32,
    name: u32,
    value: u32,
}

impl Fields {
    /// Forgets the lines and keeps the memory.
    pub fn clear(&mut self) {
        self.text.clear();
        self.lines.clear();
    }

    /// Adds a line at the end. `name` is written in lower case, whatever it came in.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        let start = index(self.text.len());
        self.text.extend(name.iter().map(u8::to_ascii_lowercase));
        self.text.extend_from_slice(value);
        self.lines.push(Line { start, name: index(name.len()), value: index(value.len()) });
    }

    /// Adds a line whose name is in lower case already.
    pub(crate) fn push_lower(&mut self, name: &[u8], value: &[u8]) {
        let start = index(self.text.len());
        self.text.extend_from_slice(name);
        self.text.extend_from_slice(value);
        self.lines.push(Line { start, name: index(name.len()), value: index(value.len()) });
    }

    /// Bytes of memory that are held for the next section.
    pub fn capacity(&self) -> usize {
        self.text.capacity() + self.lines.capacity() * size_of::<Line>()
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        self.lines.iter().map(|line| self.read(*line))
    }

    /// The line at this place, counted from 0.
    pub fn at(&self, place: usize) -> Option<(&[u8], &[u8])> {
        self.lines.get(place).map(|line| self.read(*line))
    }

    /// The values of a name in lower case, in order.
    pub fn values<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.iter().filter(move |(known, _)| *known == name).map(|(_, value)| value)
    }

    /// The first value of a name in lower case.
    pub fn first<'a>(&'a self, name: &'a [u8]) -> Option<&'a [u8]> {
        self.values(name).next()
    }

    /// Keeps the lines for which `keep` says so. Costs nothing where it keeps all.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) {
        let text = &self.text;
        let read = |line: &Line| {
            let from = at(line.start);
            let name = text.get(from..from + at(line.name)).unwrap_or_default();
            let value = text.get(from + name.len()..from + name.len() + at(line.value)).unwrap_or_default();
            keep(name, value)
        };
        self.lines.retain(read);
    }

    /// How many lines there are.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there is no line.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    fn read(&self, line: Line) -> (&[u8], &[u8]) {
        let from = at(line.start);
        let name = self.text.get(from..from + at(line.name)).unwrap_or_default();
        let value = self.text.get(from + name.len()..from + name.len() + at(line.value)).unwrap_or_default();
        (name, value)
    }
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|(name, _)| String::from_utf8_lossy(name))).finish()
    }
}

/// INVARIANT: a field section is bounded far below 4 GiB by whoever fills it.
fn index(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn at(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Fields {
        let mut fields = Fields::default();
        fields.push(b"Accept", b"text/plain");
        fields.push(b"x-empty", b"");
        fields.push(b"accept", b"*/*");
        fields
    }

    #[test]
    fn lines_keep_their_order_and_names_are_in_lower_case() {
        let fields = sample();
        assert_eq!(fields.values(b"accept").collect::<Vec<_>>(), [&b"text/plain"[..], b"*/*"]);
        assert_eq!(fields.at(1), Some((&b"x-empty"[..], &b""[..])));
        assert_eq!((fields.len(), fields.first(b"none"), fields.at(3)), (3, None, None));
    }

    #[test]
    fn retain_takes_lines_away() {
        let mut fields = sample();
        fields.retain(|name, _| name != b"x-empty");
        assert_eq!(fields.iter().count(), 2);
        fields.clear();
        assert!(fields.is_empty());
    }

    #[test]
    fn debug_shows_no_value() {
        assert_eq!(format!("{:?}", sample()), r#"["accept", "x-empty", "accept"]"#);
    }
}
