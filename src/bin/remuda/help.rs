//! What `remuda help` says.

/// A page of help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topic {
    Overview,
    Run,
    Exec,
    Bench,
}

impl Topic {
    /// The command that shows this page.
    pub(crate) fn command(self) -> &'static str {
        match self {
            Topic::Overview => "remuda --help",
            Topic::Run => "remuda help run",
            Topic::Exec => "remuda help exec",
            Topic::Bench => "remuda help bench",
        }
    }

    /// The page.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Topic::Overview => OVERVIEW,
            Topic::Run => RUN,
            Topic::Exec => EXEC,
            Topic::Bench => crate::bench::HELP,
        }
    }
}

const OVERVIEW: &str = "\
remuda: warm worker processes

Usage:
  remuda run [OPTIONS] SCRIPT... [-- ARG...]   run Python scripts in a pool of sessions
  remuda exec [OPTIONS] [CODE]                 run a piece of Python in one session
  remuda bench [OPTIONS] [SUITE]               measure this machine
  remuda help [run|exec|bench]                 tell more

Options:
  -h, --help       show this
  -V, --version    show the version
";

const RUN: &str = "\
Runs Python scripts in a pool of warm sessions, several at a time.

Usage: remuda run [OPTIONS] SCRIPT... [-- ARG...]

Each script runs as `python3 SCRIPT ARG...` would: with __name__ == \"__main__\", in the current
directory, with the current environment. Its output appears line by line behind its name. A table
at the end tells how each one ended. What a script reads from standard input is empty.

Options:
  -j, --jobs N           at most N sessions at a time [default: the cores, at least 4]
      --reuse            run script after script in the same sessions instead of giving each script a
                         new process: faster, but modules that one script imported or changed stay
                         as they are for the next
      --time-limit SECS  interrupt a script after this time, then kill it
      --python PATH      the interpreter [default: python3]
      --import MODULE    import it in each session before any script runs; may be repeated
      --env NAME=VALUE   set a variable for the scripts; may be repeated
      --json             print one JSON object per script on standard output as each ends, and
                         nothing else there
      --server URL       show the run at this tracker instead of one of its own
      --no-tracker       show it at none
  -h, --help             show this

The run can be watched and stopped on a page, whose address is printed on standard error. Without a
tracker, or when it goes away, the scripts run all the same.

Exit status: 0 if every script completed, 1 if one did not, 2 if the command line, a script or the
interpreter cannot be used, 130 after Ctrl-C, 143 after SIGTERM, 141 if nobody reads the output.
Ctrl-C stops what runs and starts nothing more; a second one kills every session at once.
";

const EXEC: &str = "\
Runs a piece of Python in one session and prints its value.

Usage: remuda exec [OPTIONS] [CODE]

Without CODE, or if CODE is -, the code is read from standard input. If its last statement is an
expression, the expression's value is printed after the output.

Options:
      --time-limit SECS  interrupt the code after this time, then kill it
      --python PATH      the interpreter [default: python3]
      --import MODULE    import it before the code runs; may be repeated
      --env NAME=VALUE   set a variable for the code; may be repeated
      --json             print one JSON object on standard output, and nothing else there
  -h, --help             show this

Exit status: 0 if the code completed, the status it gave to sys.exit(), else 1; 2 if the command
line or the interpreter cannot be used, 130 after Ctrl-C, 143 after SIGTERM.
";
