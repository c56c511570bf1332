//! The scripts named on the command line, read and checked before anything starts.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// A script that can run.
pub(crate) struct Script {
    /// As named on the command line.
    pub(crate) file: String,
    /// What it is called in prefixes and tables: as short as it can be without being mistaken.
    pub(crate) label: String,
    pub(crate) source: String,
}

/// Reads them all; if any cannot be used, says so of every one of those.
pub(crate) fn load(paths: &[PathBuf]) -> Result<Vec<Script>, Vec<String>> {
    let (mut loaded, mut problems) = (Vec::new(), Vec::new());
    for path in paths {
        match read(path) {
            Ok(script) => loaded.push(script),
            Err(problem) => problems.push(problem),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let files: Vec<String> = loaded.iter().map(|(file, _)| file.clone()).collect();
    let scripts = loaded.into_iter().zip(labels(&files));
    Ok(scripts.map(|((file, source), label)| Script { file, label, source }).collect())
}

/// Name and source of one script.
fn read(path: &Path) -> Result<(String, String), String> {
    let shown = path.display();
    let Some(file) = path.to_str() else {
        return Err(format!("{shown}: its name is not UTF-8; rename it"));
    };
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            return Err(match error.kind() {
                ErrorKind::NotFound => format!("{shown}: there is no such script; check the name"),
                ErrorKind::IsADirectory => {
                    let dir = file.trim_end_matches('/');
                    format!("{shown}: this is a directory; name the scripts in it, such as {dir}/*.py")
                }
                ErrorKind::PermissionDenied => {
                    format!("{shown}: you may not read it; change its permissions")
                }
                _ => format!("{shown}: cannot be read: {error}"),
            });
        }
    };
    let source = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..at].split(|&byte| byte == b'\n').count();
        format!("{shown}: line {line} is not UTF-8; save the script in UTF-8")
    })?;
    if source.contains('\0') {
        return Err(format!("{shown}: it contains a zero byte, so it is no Python source"));
    }
    Ok((file.to_owned(), source))
}

/// The file's name alone if only one script has it, else the path, numbered if that comes twice.
fn labels(files: &[String]) -> Vec<String> {
    let name = |file: &str| {
        Path::new(file)
            .file_name()
            .map_or_else(|| file.to_owned(), |name| name.to_string_lossy().into_owned())
    };
    let mut names: HashMap<String, usize> = HashMap::new();
    let mut paths: HashMap<&str, usize> = HashMap::new();
    for file in files {
        *names.entry(name(file)).or_default() += 1;
        *paths.entry(file).or_default() += 1;
    }
    let mut numbers: HashMap<&str, usize> = HashMap::new();
    let mut labels = Vec::with_capacity(files.len());
    for file in files {
        let short = name(file);
        let label =
            if names[&short] == 1 || names[&short] == paths[file.as_str()] { short } else { file.clone() };
        if paths[file.as_str()] == 1 {
            labels.push(label);
        } else {
            let number = numbers.entry(file).or_default();
            *number += 1;
            labels.push(format!("{label}#{number}"));
        }
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_short_and_different() {
        let files = ["x/a.py", "x/b.py", "y/b.py", "x/c.py", "x/c.py"].map(str::to_owned);
        assert_eq!(labels(&files), ["a.py", "x/b.py", "y/b.py", "c.py#1", "c.py#2"]);
    }
}
