//! A search that copies live sessions: at each fork in the maze, a copy of the session takes the other way.
//!
//! The state (where it stands, which cells it has seen, which way it came) is never sent anywhere: it is in the
//! interpreter, and the copy has it, too.
//!
//! ```sh
//! cargo run --example branches
//! ```

use remuda::{Execution, Runtime, Session};

const MAZE: &str = "\
#########
#S#   # #
# # # # #
#   #   #
# ##### #
# #   # #
# # # # #
#   #  E#
#########";

/// What each session knows, and its one verb: go on until there is a choice, a dead end or the way out.
const WALKER: &str = r"
rows = maze.split('\n')
y, x = next((y, line.index('S')) for y, line in enumerate(rows) if 'S' in line)
way, seen = '', {(y, x)}

def turns():
    steps = {'N': (y - 1, x), 'S': (y + 1, x), 'W': (y, x - 1), 'E': (y, x + 1)}
    return [turn for turn, (v, u) in steps.items() if rows[v][u] != '#' and (v, u) not in seen]

def go(turn):
    global y, x, way
    y, x = {'N': (y - 1, x), 'S': (y + 1, x), 'W': (y, x - 1), 'E': (y, x + 1)}[turn]
    seen.add((y, x))
    way += turn

def walk():
    while rows[y][x] != 'E':
        found = turns()
        if len(found) != 1:
            return found
        go(found[0])
    return way
";

fn main() -> remuda::Result<()> {
    let mut first = Session::builder(Runtime::python("python3")).start()?;
    first.execute(format!("maze = '''{MAZE}'''\n{WALKER}"))?;
    // Walkers that have not been asked yet how far they come.
    let mut waiting = vec![first];
    let mut walkers = 1;
    while let Some(mut walker) = waiting.pop() {
        let Execution { value, .. } = walker.execute("walk()")?;
        let Some(turns) = value.as_array() else {
            println!("{value}: found with {walkers} walkers");
            return Ok(());
        };
        let turns: Vec<&str> = turns.iter().filter_map(|turn| turn.as_str()).collect();
        let Some((last, others)) = turns.split_last() else { continue };
        for turn in others {
            let mut copy = walker.fork()?;
            copy.execute(format!("go('{turn}')"))?;
            waiting.push(copy);
            walkers += 1;
        }
        walker.execute(format!("go('{last}')"))?;
        waiting.push(walker);
    }
    println!("there is no way out");
    Ok(())
}
