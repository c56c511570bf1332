//! From chunks of output to whole lines behind a prefix.

use std::io::Write;

/// A line longer than this is broken: a script without line ends must not fill the memory.
const LONGEST: usize = 64 << 10;

/// Collects one stream of one script and gives it out line by line, each behind the prefix.
pub(crate) struct Lines {
    prefix: String,
    partial: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(prefix: impl Into<String>) -> Lines {
        Lines { prefix: prefix.into(), partial: Vec::new() }
    }

    /// Appends the lines that `chunk` completes to `out`, and keeps the rest.
    pub(crate) fn push(&mut self, mut chunk: &[u8], out: &mut Vec<u8>) {
        while let Some(end) = chunk.iter().position(|&byte| byte == b'\n') {
            let (line, rest) = chunk.split_at(end);
            chunk = &rest[1..];
            if self.partial.is_empty() {
                write_line(&self.prefix, line, out);
            } else {
                self.partial.extend_from_slice(line);
                self.finish(out);
            }
        }
        self.partial.extend_from_slice(chunk);
        while self.partial.len() >= LONGEST {
            let rest = self.partial.split_off(character_boundary(&self.partial, LONGEST));
            self.finish(out);
            self.partial = rest;
        }
    }

    /// Appends what is left as a line of its own, if anything is.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        if !self.partial.is_empty() {
            write_line(&self.prefix, &self.partial, out);
            self.partial.clear();
        }
    }
}

/// A line that redraws itself by carriage returns shows its last state: a return to the first
/// column would overwrite the prefix.
fn write_line(prefix: &str, line: &[u8], out: &mut Vec<u8>) {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let start = line.iter().rposition(|&byte| byte == b'\r').map_or(0, |at| at + 1);
    out.extend_from_slice(prefix.as_bytes());
    out.extend_from_slice(&line[start..]);
    out.push(b'\n');
}

/// The last place at or before `at` where no UTF-8 character is cut.
fn character_boundary(bytes: &[u8], at: usize) -> usize {
    let back = (0..4).find(|back| bytes.get(at - back).is_none_or(|byte| byte & 0xC0 != 0x80));
    at - back.unwrap_or(0)
}

/// Writes all of `bytes` and flushes them: lines appear when they are complete.
pub(crate) fn write_through(stream: &mut impl Write, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes)?;
    stream.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<u8> {
        let (mut lines, mut out) = (Lines::new("a | "), Vec::new());
        for chunk in chunks {
            lines.push(chunk, &mut out);
        }
        lines.finish(&mut out);
        out
    }

    #[test]
    fn lines_are_whole_however_the_chunks_fall() {
        let text = b"one\n\ntwo \xC3\xA4\nthree";
        let whole = lines(&[text]);
        assert_eq!(whole, b"a | one\na | \na | two \xC3\xA4\na | three\n");
        for cut in 0..text.len() {
            assert_eq!(lines(&[&text[..cut], &text[cut..]]), whole, "cut at {cut}");
        }
        assert_eq!(lines(&[b""]), b"");
    }

    #[test]
    fn carriage_returns_leave_the_last_state() {
        assert_eq!(lines(&[b"10%\r50", b"%\r100%\n", b"dos\r\n"]), b"a | 100%\na | dos\n");
    }

    #[test]
    fn an_endless_line_is_broken_between_characters() {
        let text = "ä".repeat(LONGEST);
        let out = lines(&[b"x", text.as_bytes()]);
        let out = String::from_utf8(out).expect("no character is cut");
        assert!(out.lines().count() > 2);
        assert!(out.lines().all(|line| line.starts_with("a | ")));
        assert_eq!(out.replace("a | ", "").replace('\n', ""), format!("x{text}"));
    }
}
