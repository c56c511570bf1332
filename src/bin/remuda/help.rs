//! What `remuda help` says.

/// A page of help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topic {
    Overview,
    Run,
    Exec,
    Serve,
    Token,
    Ps,
    Kill,
    Order,
    Cleanup,
    History,
    Events,
    Audit,
    Bench,
    Protocol,
}

impl Topic {
    /// The command that shows this page.
    pub(crate) fn command(self) -> &'static str {
        match self {
            Topic::Overview => "remuda --help",
            Topic::Run => "remuda help run",
            Topic::Exec => "remuda help exec",
            Topic::Serve => "remuda help serve",
            Topic::Token => "remuda help token",
            Topic::Ps => "remuda help ps",
            Topic::Kill => "remuda help kill",
            Topic::Order => "remuda help pause",
            Topic::Cleanup => "remuda help cleanup",
            Topic::History => "remuda help history",
            Topic::Events => "remuda help events",
            Topic::Audit => "remuda help audit",
            Topic::Bench => "remuda help bench",
            Topic::Protocol => "remuda help protocol",
        }
    }

    /// The page.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Topic::Overview => OVERVIEW,
            Topic::Run => RUN,
            Topic::Exec => EXEC,
            Topic::Serve => SERVE,
            Topic::Token => TOKEN,
            Topic::Ps => PS,
            Topic::Kill => KILL,
            Topic::Order => ORDER,
            Topic::Cleanup => CLEANUP,
            Topic::History => HISTORY,
            Topic::Events => EVENTS,
            Topic::Audit => AUDIT,
            Topic::Bench => crate::bench::HELP,
            Topic::Protocol => crate::protocol::HELP,
        }
    }
}

const OVERVIEW: &str = "\
remuda: warm worker processes

Usage:
  remuda run [OPTIONS] SCRIPT... [-- ARG...]   run Python scripts in a pool of sessions
  remuda exec [OPTIONS] [CODE]                 run a piece of Python in one session
  remuda serve [--listen ADDR:PORT] [--db PATH]
                                               track running programs, show them on a page
  remuda token                                 make an access token for a tracker
  remuda ps [OPTIONS]                          list the tracked sessions
  remuda kill [OPTIONS] ID... | --app NAME     ask tracked sessions to stop, and see whether they do
  remuda pause|drain|resume ID... | --app NAME
                                               have them take no new task for now, or leave after this one
  remuda protect|unprotect ID... | --app NAME  keep them out of reach of kill --app
  remuda cleanup                               remove silent tracked sessions
  remuda history [OPTIONS]                     list the tracked sessions that are no more
  remuda events [--follow] [OPTIONS]           tell what happens to tracked sessions
  remuda audit [OPTIONS]                       list who has asked for what
  remuda bench [OPTIONS] [SUITE]               measure this machine
  remuda protocol check [OPTIONS] -- PROGRAM [ARG...]
                                               check a worker program against the protocol
  remuda help [COMMAND]                        tell more

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
      --token-file FILE  the access token for it, in a file that only its owner may read
                         [default: the variable REMUDA_TOKEN]
      --no-tracker       show it at none
  -h, --help             show this

The run can be watched and stopped on a page, whose address is printed on standard error: port 8000,
where `remuda ps` and `remuda kill` look, or a free one if that is taken (then they need --server).
`remuda pause` holds the scripts that have not begun until `remuda resume`; `remuda drain` leaves them out.
Without a tracker, or when it goes away, the scripts run all the same.

Each object of --json has: script; outcome (completed, failed, cancelled, timed_out, died, refused,
not_started); ok; killed; seconds; session; peak_memory (bytes); value and repr of a trailing
expression; stdout and stderr; dropped (bytes of each that were too many to keep); error (type, message,
traceback, exit_code); post_mortem of a worker that ended; refused (why it got no session).

Exit status: 0 if every script completed, 1 if one did not (also when the run was stopped or drained at a
tracker), 2 if the command line, a script or the interpreter cannot be used, 130 after Ctrl-C, 143 after
SIGTERM, 141 if nobody reads the output.
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

const SERVE: &str = "\
Tracks running programs: they register, beat, and hear when they shall stop. Shows them on a page.

Usage: remuda serve [OPTIONS]

Options:
      --listen ADDR:PORT  where to listen [default: 127.0.0.1:8000]; addresses that other machines can
                          reach take access tokens; port 0 takes a free one
      --db PATH           the database's file [default: remuda.db]; :memory: keeps it in memory
      --tokens FILE       ask everybody for one of the access tokens in this file, which only its owner
                          may read [default: those in REMUDA_TOKENS, if it is set; it must not be empty]
      --allow-host NAME   answer under this name too, as that of a proxy; may be repeated
  -h, --help              show this

A line of FILE is 'operator NAME TOKEN' (may do everything), 'viewer NAME TOKEN' (may look) or
'app NAME TOKEN' (may register, and touch what was registered under this NAME). 'remuda token' makes a
TOKEN.

The first line on standard output names the page's address and says whether tokens are asked for. Warnings go to standard error. Runs until
Ctrl-C or SIGTERM, and then ends in good order with exit status 0; 2 if it cannot start.
";

const TOKEN: &str = "\
Prints a new random access token, for the file of 'remuda serve --tokens' and for whoever shall have it.

Usage: remuda token

For example: umask 077; echo \"operator ops $(remuda token)\" >> tokens
";

const PS: &str = "\
Lists the tracked sessions, newest first.

Usage: remuda ps [OPTIONS]

Options:
      --app NAME         only those of this app
      --user NAME        only those of this user
      --state STATE      only those that are running, idle, late or stale
      --label KEY=VALUE  only those with this label
  -q TEXT                only those with this text in their app, user, id, task or host
      --sort ORDER       start_time, app, user, id or last_heartbeat; with a - in front, such as
                         -app, the largest first [default: -start_time]
      --limit N          at most so many
      --json             print one JSON object for each, on a line of its own
      --server URL       the tracker [default: http://localhost:8000]
      --token-file FILE  the access token for it, in a file that only its owner may read
                         [default: the variable REMUDA_TOKEN]
  -h, --help             show this

Exit status: 0; 1 if the tracker does not answer, or refuses; 2 if the command line is wrong.
";

const KILL: &str = "\
Asks tracked sessions to stop.

Usage: remuda kill [OPTIONS] ID...
       remuda kill [OPTIONS] --app NAME
       remuda kill [OPTIONS] --label KEY=VALUE

An ID may be shortened as long as only one session's id begins with it. If one of several is not found,
none is killed. The tracker keeps the request until the session has heard it, and a receipt tells how far
it is: requested, delivered, stopping (its callbacks run), confirmed (they have ended, or it has left), or
expired (it is not heard of any more, or goes on).

Options:
      --app NAME         all sessions of this app that are not protected
      --label KEY=VALUE  all sessions with this label that are not protected
      --reason TEXT      why, for the receipt and for the session
      --wait             wait until each kill is confirmed or expired, and tell how long it took
      --timeout SECS     how long to wait [default: 60]
      --dry-run          only tell who would be hit, what they hold and who shares their pools
      --generation TEXT  kill exactly those whom a --dry-run has named, or nobody
      --embargo SECS     with --app: also kill sessions of the app that register within this time;
                         0 lifts an embargo
      --force            kill a session by its ID even if it is protected
      --json             print receipts (or the preview) as JSON objects, each on a line of its own
      --server URL       the tracker [default: http://localhost:8000]
      --token-file FILE  the access token for it, in a file that only its owner may read
                         [default: the variable REMUDA_TOKEN]
  -h, --help             show this

Exit status: 0; 1 if there is no such session or app, it is protected, a kill has expired, or the tracker
does not answer, or refuses; 2 if the command line is wrong; 124 if --wait has waited in vain.
";

const ORDER: &str = "\
Tells tracked sessions how to go on. Unlike a kill it can be taken back.

Usage: remuda pause | drain | resume | protect | unprotect [OPTIONS] ID...
                                                                     --app NAME
                                                                     --label KEY=VALUE

  pause      take no new task until it is resumed
  drain      finish the task, take no other, leave
  resume     forget a pause or drain
  protect    be out of reach of kill --app and --label
  unprotect  be within reach again

A session hears it with the answer to its heartbeat. Apps that know nothing of it go on as before.

Options:
      --app NAME         all sessions of this app
      --label KEY=VALUE  all sessions with this label
      --server URL       the tracker [default: http://localhost:8000]
      --token-file FILE  the access token for it, in a file that only its owner may read
                         [default: the variable REMUDA_TOKEN]
  -h, --help             show this

Exit status: 0; 1 if there is no such session, or the tracker does not answer, or refuses; 2 if the
command line is wrong.
";

const CLEANUP: &str = "\
Has the tracker remove sessions that have been silent for long. It does so by itself after 10 minutes.

Usage: remuda cleanup [OPTIONS]

Options:
      --older-than MINUTES  how long [default: 10]
      --server URL          the tracker [default: http://localhost:8000]
      --token-file FILE     the access token for it, in a file that only its owner may read
                            [default: the variable REMUDA_TOKEN]
  -h, --help                show this

Exit status: 0; 1 if the tracker does not answer, or refuses; 2 if the command line is wrong.
";

const HISTORY: &str = "\
Lists the tracked sessions that are no more, newest first.

Usage: remuda history [OPTIONS]

OUTCOME tells how one went: ended (it left by itself), or lost (it was silent for too long), and why: left,
killed, silent or cleaned_up.

Options:
      --app NAME         only those of this app
      --session ID       only what this session was; the whole ID
      --limit N          at most so many
      --json             print one JSON object for each, on a line of its own
      --server URL       the tracker [default: http://localhost:8000]
      --token-file FILE  the access token for it, in a file that only its owner may read
                         [default: the variable REMUDA_TOKEN]
  -h, --help             show this

Exit status: 0; 1 if the tracker does not answer, refuses, or keeps no history; 2 if the command line is
wrong.
";

const EVENTS: &str = "\
Tells what has happened to the tracked sessions as far as the tracker still knows it, oldest first: the last
10 000 events or so since its start. With --follow: what happens from now on, as it happens.

Usage: remuda events [OPTIONS]

Options:
  -f, --follow           tell what happens from now on, until Ctrl-C; also when the tracker was away
                         meanwhile
      --kind KIND        only events of this kind; may be repeated
      --app NAME         only those about this app and its sessions
      --session ID       only those about this session; the whole ID
      --json             print one JSON object for each, on a line of its own
      --server URL       the tracker [default: http://localhost:8000]
      --token-file FILE  the access token for it, in a file that only its owner may read
                         [default: the variable REMUDA_TOKEN]
  -h, --help             show this

Kinds: registered, status, kill_requested, kill_delivered, kill_stopping, kill_confirmed, kill_expired,
ordered, ended, stale, back, embargo, mass_silence, mass_silence_over, store_failing, store_ready.
What the tracker does not know any more is missing, and a line on standard error says so.

Exit status: 0; 1 if the tracker does not answer when this begins, refuses, or tells no events; 2 if the
command line is wrong; with --follow 130 after Ctrl-C, 143 after SIGTERM, 141 if nobody reads the output.
";

const AUDIT: &str = "\
Lists what operators have asked the tracker for, and what became of it, newest first. Where the tracker
asks for access tokens, this takes one of an operator.

Usage: remuda audit [OPTIONS]

TOKEN and ADDRESS are what the tracker knows of who has asked; ASKED BY is what he said himself.

Options:
      --action ACTION    only this: kill, pause, drain, resume, protect, unprotect, clean_up or remove
      --by NAME          only what was asked with the access token of this name
      --limit N          at most so many
      --json             print one JSON object for each, on a line of its own
      --server URL       the tracker [default: http://localhost:8000]
      --token-file FILE  the access token for it, in a file that only its owner may read
                         [default: the variable REMUDA_TOKEN]
  -h, --help             show this

Exit status: 0; 1 if the tracker does not answer, refuses, or keeps no audit; 2 if the command line is wrong.
";
