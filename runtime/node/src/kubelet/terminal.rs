//! What a terminal does between a keyboard and a command, for `kubectl exec -t`: the client makes its own raw and leaves all of it to the
//! other end. As Linux's line discipline does it (`n_tty.c`, with the usual keys of `stty`): input goes to the command line by line, what is
//! typed is shown, and mistakes can be taken back.

/// Bytes of a line that has not ended (`N_TTY_BUF_SIZE`); what is typed beyond is refused with a bell.
const LINE_BYTES_MAX: usize = 4095;

/// What is heard of keys that cannot be taken.
const BELL: u8 = 0x07;
const INTERRUPT: u8 = 0x03;
const END: u8 = 0x04;
const BACKSPACE: u8 = 0x08;
const KILL_LINE: u8 = 0x15;
const ERASE_WORD: u8 = 0x17;
const DELETE: u8 = 0x7f;
/// Takes back what one column shows.
const RUB_OUT: &[u8] = b"\x08 \x08";

/// A line that is typed.
#[derive(Debug, Default)]
pub(super) struct Terminal {
    line: Vec<u8>,
    /// What goes to the command has ended: what is typed behind that is shown, and goes nowhere.
    is_ended: bool,
}

/// What comes of keys.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Typed {
    /// What is shown of it.
    pub echo: Vec<u8>,
    /// What goes to the command.
    pub input: Vec<u8>,
    /// No more is typed.
    pub is_end: bool,
    /// The command is to end.
    pub is_interrupted: bool,
}

impl Terminal {
    /// Takes keys, up to one that ends the command; for what goes to it there is `room`. Keys for which there is none are refused: they
    /// are not shown, and a bell says so, before all else.
    pub fn typed(&mut self, keys: &[u8], room: usize) -> Typed {
        let mut typed = Typed::default();
        let is_refused = self.take(keys, room, &mut typed);
        if is_refused {
            typed.echo.insert(0, BELL);
        }
        typed
    }

    /// Whether there was a key that could not be taken. What is in the line has room, and so has its end.
    fn take(&mut self, keys: &[u8], room: usize, typed: &mut Typed) -> bool {
        let mut is_refused = false;
        for &key in keys {
            let left = match self.is_ended {
                true => usize::MAX,
                false => room.saturating_sub(typed.input.len() + self.line.len()),
            };
            match key {
                INTERRUPT => {
                    typed.echo.extend_from_slice(b"^C\n");
                    typed.is_interrupted = true;
                    return is_refused;
                }
                END if self.line.is_empty() => {
                    typed.is_end = true;
                    self.is_ended = true;
                }
                END => self.send(typed),
                b'\r' | b'\n' if left == 0 => is_refused = true,
                b'\r' | b'\n' => {
                    self.line.push(b'\n');
                    typed.echo.push(b'\n');
                    self.send(typed);
                }
                DELETE | BACKSPACE => self.erase(&mut typed.echo),
                KILL_LINE => {
                    while !self.line.is_empty() {
                        self.erase(&mut typed.echo);
                    }
                }
                ERASE_WORD => {
                    while self.line.last() == Some(&b' ') {
                        self.erase(&mut typed.echo);
                    }
                    while self.line.last().is_some_and(|last| *last != b' ') {
                        self.erase(&mut typed.echo);
                    }
                }
                _ if self.line.len() >= LINE_BYTES_MAX || left <= 1 => is_refused = true,
                key => {
                    self.line.push(key);
                    match key {
                        b'\t' => typed.echo.push(key),
                        0..0x20 => typed.echo.extend_from_slice(&[b'^', key + b'@']),
                        key => typed.echo.push(key),
                    }
                }
            }
        }
        is_refused
    }

    /// Has the command read the line.
    fn send(&mut self, typed: &mut Typed) {
        match self.is_ended {
            true => self.line.clear(),
            false => typed.input.append(&mut self.line),
        }
    }

    /// Takes back a letter, however many bytes it has.
    fn erase(&mut self, echo: &mut Vec<u8>) {
        while let Some(last) = self.line.pop() {
            let is_shown_as_two = last < 0x20 && last != b'\t';
            echo.extend_from_slice(RUB_OUT);
            if is_shown_as_two {
                echo.extend_from_slice(RUB_OUT);
            }
            let is_continued = last & 0xc0 == 0x80;
            if !is_continued {
                return;
            }
            // It is one letter, which one column shows.
            echo.truncate(echo.len() - RUB_OUT.len());
        }
    }
}

/// What a terminal shows of what a command prints: a new line begins at its left.
pub(super) fn shown(printed: &[u8]) -> Vec<u8> {
    let mut shown = Vec::with_capacity(printed.len() + printed.len() / 16);
    for &byte in printed {
        if byte == b'\n' {
            shown.push(b'\r');
        }
        shown.push(byte);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_to_the_command_when_they_are_ended_and_keys_are_shown() {
        for (keys, echo, input) in [
            (&b"ls\r"[..], &b"ls\n"[..], &b"ls\n"[..]),
            (b"l", b"l", b""),
            (b"lx\x7fs\r", b"lx\x08 \x08s\n", b"ls\n"),
            (b"\x7fa\r", b"a\n", b"a\n"),
            ("aü\x7f\r".as_bytes(), "aü\x08 \x08\n".as_bytes(), b"a\n"),
            (b"ab\x15c\r", b"ab\x08 \x08\x08 \x08c\n", b"c\n"),
            (b"a bc \x17\r", b"a bc \x08 \x08\x08 \x08\x08 \x08\n", b"a \n"),
            (b"\x1b[A\x7f\x7f\x7f\r", b"^[[A\x08 \x08\x08 \x08\x08 \x08\x08 \x08\n", b"\n"),
            (b"a\x04b", b"ab", b"a"),
        ] {
            let typed = Terminal::default().typed(keys, usize::MAX);
            let shown = String::from_utf8_lossy(keys).into_owned();
            let expected = Typed { echo: echo.to_vec(), input: input.to_vec(), ..Typed::default() };
            assert_eq!(typed, expected, "{shown:?}");
        }
    }

    #[test]
    fn two_keys_end_something() {
        let mut terminal = Terminal::default();
        let typed = terminal.typed(b"a\r\x04b", usize::MAX);
        assert_eq!((typed.input.as_slice(), typed.is_end, typed.is_interrupted), (&b"a\n"[..], true, false));
        assert_eq!(typed.echo, b"a\nb");
        let typed = terminal.typed(b"a\x03b", usize::MAX);
        assert_eq!((typed.input.as_slice(), typed.is_end, typed.is_interrupted), (&b""[..], false, true));
        // What comes behind the end in the same message is heard, too; to the command it says nothing more.
        let mut terminal = Terminal::default();
        let typed = terminal.typed(b"\x04a\r\x03", 0);
        assert_eq!((typed.input.as_slice(), typed.is_end, typed.is_interrupted), (&b""[..], true, true));
        assert_eq!(typed.echo, b"a\n^C\n", "and no bell");
        assert_eq!(terminal.typed(b"b\r", usize::MAX).input, b"");
    }

    #[test]
    fn a_line_has_an_end() {
        let mut terminal = Terminal::default();
        let typed = terminal.typed(&vec![b'x'; 2 * LINE_BYTES_MAX], usize::MAX);
        assert_eq!((typed.echo[0], typed.echo.len()), (BELL, 1 + LINE_BYTES_MAX));
        assert_eq!(terminal.typed(b"\r", usize::MAX).input.len(), LINE_BYTES_MAX + 1);
    }

    #[test]
    fn what_fits_of_a_paste_is_taken_and_the_rest_is_refused_with_a_bell() {
        let mut terminal = Terminal::default();
        for (keys, room, echo, input) in [
            (&b"one\rtwo\r"[..], 8, &b"one\ntwo\n"[..], &b"one\ntwo\n"[..]),
            (b"one\rtwo\r", 7, b"\x07one\ntw\n", b"one\ntw\n"),
            (b"one\rtwo\r", 4, b"\x07one\n", b"one\n"),
            (b"one\r", 0, b"\x07", b""),
            (b"on", 4, b"on", b""),
            (b"ely\r", 4, b"\x07e\n", b"one\n"),
        ] {
            let typed = terminal.typed(keys, room);
            assert_eq!((&typed.echo[..], &typed.input[..]), (echo, input), "{keys:?} {room}");
        }
        // It can be interrupted all the same.
        assert!(terminal.typed(b"x\x03", 0).is_interrupted);
    }

    #[test]
    fn a_new_line_begins_at_the_left() {
        assert_eq!(shown(b"a\nb\n"), b"a\r\nb\r\n");
    }
}
