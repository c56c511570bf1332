//! What to say to a worker in its own language. What this program does not know, the user may give.

use serde_json::Value;

use super::report::{Checked, Miss};

/// Code and calls that the user gave for a language of his own.
#[derive(Debug, Default)]
pub(super) struct Given {
    pub(super) execute: Vec<(String, Value)>,
    /// Function, arguments, value.
    pub(super) call: Vec<(String, Value, Value)>,
}

/// Code by its purpose; `None` where this program does not know the language.
#[derive(Debug, Default)]
pub(super) struct Dialect {
    words: Option<&'static Words>,
    execute: Vec<(String, Value)>,
    pub(super) call: Vec<(String, Value, Value)>,
}

/// One language. `N` stands for a number, `TEXT` for a text without quotes in it.
#[derive(Debug)]
pub(super) struct Words {
    /// N + 1.
    sum: &'static str,
    /// The number of letters of TEXT.
    length: &'static str,
    /// The letter x, N times.
    repeat: &'static str,
    /// Writes the lines 0 to N - 1 to both streams; the value is "done".
    pub(super) lines: &'static str,
    /// Has a child process write "child" and the end of a line to its stdout; the value is 0.
    pub(super) child_writes: &'static str,
    /// Raises, with this type and message.
    pub(super) raises: (&'static str, &'static str, &'static str),
    /// Writes a line and runs until it is stopped.
    pub(super) busy: &'static str,
    /// Asks whether it shall stop, writes a line, asks until it shall, ends with the value "seen".
    pub(super) polls: &'static str,
    /// Swallows one interruption, goes on for about N steps, ends with the value "went on".
    pub(super) swallows: Option<&'static str>,
    /// The bytes of attachment "in" as a list of numbers, after sending attachment "out" with them
    /// in reverse.
    pub(super) attachments: &'static str,
    /// Shows the text "plain" and the HTML `<b>rich</b>`.
    pub(super) display: &'static str,
    /// Says 0.5 and "half".
    pub(super) progress: &'static str,
    /// The line that it reads, behind the prompt "name? ".
    pub(super) input: &'static str,
    /// Uses some processor time.
    pub(super) works: &'static str,
    /// Defines `leftover` in the namespace.
    pub(super) defines: &'static str,
    /// Its value; an error if it is not there.
    pub(super) reads: &'static str,
    /// Changes the environment and the working directory.
    pub(super) wanders: &'static str,
    /// A module that can be imported, and that is not there at the start.
    pub(super) module: &'static str,
    /// A function, its arguments, the value.
    call: (&'static str, &'static str, &'static str),
    /// Starts a child that lives for ten minutes; the value is its number.
    pub(super) child: &'static str,
    /// The same, then runs until it is stopped, after writing a line.
    pub(super) child_and_busy: &'static str,
    /// What the descriptors above 2 of a child are, as a list of texts.
    pub(super) inherited: &'static str,
    /// How many bytes there are to read on fd 0.
    pub(super) stdin: &'static str,
    /// Creates the file "ran" in the working directory.
    pub(super) leaves_a_file: &'static str,
    /// A value of three bytes: 0, 1, 255. `None`: the language has no such thing.
    pub(super) bytes: &'static str,
    /// A value without JSON.
    pub(super) odd: &'static str,
}

const LIST_DESCRIPTORS: &str =
    "for fd in /proc/self/fd/*; do n=${fd##*/}; [ $n -gt 2 ] && readlink $fd; done; true";

const PYTHON: Words = Words {
    sum: "N + 1",
    length: "len('TEXT')",
    repeat: "'x' * N",
    lines: "import sys\nfor i in range(N):\n    print(i)\n    print(i, file=sys.stderr)\n'done'",
    child_writes: "import os\nos.system('echo child')",
    raises: ("def f(): raise ValueError('no luck')\nf()", "ValueError", "no luck"),
    busy: "print('busy', flush=True)\nwhile True: pass",
    polls: "import remuda\nremuda.cancelled()\nprint('busy', flush=True)\nwhile not remuda.cancelled(): pass\n'seen'",
    swallows: Some(
        "try:\n    print('busy', flush=True)\n    while True: pass\nexcept KeyboardInterrupt: pass\n\
         for _ in range(N): pass\n'went on'",
    ),
    attachments: "import remuda\ndata = bytes(remuda.attachments['in'])\nremuda.attach('out', data[::-1])\nlist(data)",
    display: "import remuda\nremuda.display({'text/plain': 'plain', 'text/html': '<b>rich</b>'}, raw=True)\nNone",
    progress: "import remuda\nremuda.progress(0.5, 'half')\nNone",
    input: "input('name? ')",
    works: "sum(range(2000000))\nNone",
    defines: "leftover = 41\nNone",
    reads: "leftover",
    wanders: "import os\nos.environ['REMUDA_CHECK'] = 'was here'\nos.chdir('/')\nNone",
    module: "colorsys",
    call: ("builtins:max", "[[1, 3, 2]]", "3"),
    child: "import subprocess\nsubprocess.Popen(['sleep', '600']).pid",
    child_and_busy: "import subprocess\nsubprocess.Popen(['sleep', '600'])\nprint('busy', flush=True)\nwhile True: pass",
    inherited: "import subprocess\nsubprocess.run(['sh', '-c', 'LIST'], close_fds=False, capture_output=True, text=True).stdout.split()",
    stdin: "import os\nlen(os.read(0, 10))",
    leaves_a_file: "open('ran', 'w').close()",
    bytes: "bytes([0, 1, 255])",
    odd: "object()",
};

const NODE: Words = Words {
    sum: "N + 1",
    length: "'TEXT'.length",
    repeat: "'x'.repeat(N)",
    lines: "for (let i = 0; i < N; i++) { console.log(i); console.error(i) }\n'done'",
    child_writes: "require('node:child_process').spawnSync('echo', ['child'], { stdio: 'inherit' }).status",
    raises: ("function f() { throw new TypeError('no luck') }\nf()", "TypeError", "no luck"),
    busy: "console.log('busy')\nwhile (true) {}",
    polls: "remuda.cancelled()\nconsole.log('busy')\nwhile (!remuda.cancelled()) {}\n'seen'",
    swallows: None,
    attachments: "const data = remuda.attachments['in']\nremuda.attach('out', Buffer.from(data).reverse())\nArray.from(data)",
    display: "remuda.display({ 'text/plain': 'plain', 'text/html': '<b>rich</b>' })\nundefined",
    progress: "remuda.progress(0.5, 'half')\nundefined",
    input: "await remuda.input('name? ')",
    works: "for (let i = 0, sum = 0; i < 30000000; i++) sum += i\nundefined",
    defines: "globalThis.leftover = 41\nundefined",
    reads: "leftover",
    wanders: "process.env.REMUDA_CHECK = 'was here'\nprocess.chdir('/')\nundefined",
    module: "node:zlib",
    call: ("node:path:basename", r#"["/a/b.c"]"#, r#""b.c""#),
    child: "require('node:child_process').spawn('sleep', ['600'], { stdio: 'ignore' }).pid",
    child_and_busy: "require('node:child_process').spawn('sleep', ['600'], { stdio: 'ignore' })\nconsole.log('busy')\nwhile (true) {}",
    inherited: "require('node:child_process').spawnSync('sh', ['-c', 'LIST']).stdout.toString().split(/\\s+/).filter(Boolean)",
    stdin: "require('node:fs').readSync(0, Buffer.alloc(10))",
    leaves_a_file: "require('node:fs').writeFileSync('ran', '')",
    bytes: "Buffer.from([0, 1, 255])",
    odd: "(() => 1)",
};

impl Dialect {
    pub(super) fn of(language: &str, given: &Given) -> Dialect {
        let words = match language.to_ascii_lowercase().as_str() {
            "python" => Some(&PYTHON),
            "node" | "javascript" => Some(&NODE),
            _ => None,
        };
        let mut call = given.call.clone();
        if let Some(Words { call: (function, args, value), .. }) = words {
            let json = |text: &str| serde_json::from_str(text).unwrap_or_default();
            call.push(((*function).to_owned(), json(args), json(value)));
        }
        Dialect { words, execute: given.execute.clone(), call }
    }

    /// The words of the language; without them the row is skipped.
    pub(super) fn words(&self) -> Checked<&'static Words> {
        self.words.ok_or_else(|| Miss::skipped("this program does not know the worker's language"))
    }

    /// A small piece of code with its value; another one for each number where that is possible.
    pub(super) fn small(&self, number: u64) -> Checked<(String, Value)> {
        if self.execute.is_empty() {
            let sum = self.words.map(|words| words.sum).ok_or_else(|| {
                Miss::skipped("this program does not know the worker's language; give --execute CODE=JSON")
            })?;
            let number = number % 1_000_000;
            return Ok((sum.replace('N', &number.to_string()), (number + 1).into()));
        }
        let index = usize::try_from(number).unwrap_or_default() % self.execute.len();
        Ok(self.execute[index].clone())
    }
}

impl Words {
    /// Code of exactly `size` bytes, with its value.
    pub(super) fn long(&self, size: usize) -> (String, Value) {
        let letters = size - (self.length.len() - "TEXT".len());
        (self.length.replace("TEXT", &"x".repeat(letters)), letters.into())
    }

    pub(super) fn repeat(&self, count: usize) -> String {
        self.repeat.replace('N', &count.to_string())
    }

    /// The code that lists what a child inherits.
    pub(super) fn inherited(&self) -> String {
        self.inherited.replace("LIST", LIST_DESCRIPTORS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_code_is_as_long_as_was_asked_for() {
        for words in [&PYTHON, &NODE] {
            let (code, value) = words.long(1000);
            assert_eq!(code.len(), 1000);
            assert!(value.as_u64().is_some_and(|letters| letters > 980));
        }
    }

    #[test]
    fn given_code_comes_before_what_is_known() {
        let given = Given { execute: vec![("2 * 2".to_owned(), 4.into())], call: Vec::new() };
        let dialect = Dialect::of("python", &given);
        assert_eq!(dialect.small(7).ok(), Some(("2 * 2".to_owned(), 4.into())));
        assert!(Dialect::of("cobol", &Given::default()).small(1).is_err());
        assert_eq!(
            Dialect::of("node", &Given::default()).small(7).ok(),
            Some(("7 + 1".to_owned(), 8.into()))
        );
    }
}
