//! Files, and the YAML documents in them.

use crate::error::{ConfigError, RESOURCE};
use std::io::Read;
use std::path::Path;

/// Files of one configuration.
const FILES_MAX: usize = 1000;
/// Bytes of one file.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// How deep directories may be nested.
const DEPTH_MAX: usize = 16;

/// One file's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Path relative to the directory, with `/`.
    pub file: String,
    /// Its whole text.
    pub text: String,
}

/// One YAML document of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Document<'a> {
    pub(crate) file: &'a str,
    /// Lines of the file before the document.
    pub(crate) lines_before: u32,
    pub(crate) text: &'a str,
}

/// Reads every `*.yaml` and `*.yml` below `dir`, in the order of their paths. What begins with a dot is passed over.
///
/// # Errors
/// - [`ConfigError`] for a directory or file that cannot be read, is not UTF-8, or is over a bound.
pub fn read(dir: &Path) -> Result<Vec<Source>, ConfigError> {
    let mut sources = Vec::new();
    // Told of here, where its name is known: an error within it names the file below it.
    std::fs::read_dir(dir).map_err(|error| whole(".", format!("`{}` cannot be read: {error}", dir.display())))?;
    collect(dir, "", 0, &mut sources)?;
    if sources.is_empty() {
        return Err(whole(".", format!("no `*.yaml` file in `{}`", dir.display())));
    }
    sources.sort_by(|one, other| one.file.cmp(&other.file));
    Ok(sources)
}

/// Reads one file; its errors and places name it as it is given here.
///
/// # Errors
/// - [`ConfigError`] if it cannot be read, is not UTF-8, or is over a bound.
pub fn read_one(path: &Path) -> Result<Source, ConfigError> {
    let file = path.display().to_string();
    Ok(Source { text: read_file(path, &file)?, file })
}

fn whole(file: &str, message: String) -> ConfigError {
    ConfigError { file: file.to_owned(), line: 1, column: 1, message, code: RESOURCE }
}

fn collect(dir: &Path, prefix: &str, depth: usize, sources: &mut Vec<Source>) -> Result<(), ConfigError> {
    let place = if prefix.is_empty() { "." } else { prefix };
    let failed = |error: std::io::Error| whole(place, format!("`{}` cannot be read: {error}", dir.display()));
    if depth > DEPTH_MAX {
        return Err(whole(place, format!("directories are nested deeper than {DEPTH_MAX}")));
    }
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let file = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
        // Follows links: a mounted Kubernetes volume is made of them.
        let kind = std::fs::metadata(entry.path()).map_err(|error| whole(&file, format!("cannot be read: {error}")))?;
        if kind.is_dir() {
            collect(&entry.path(), &file, depth + 1, sources)?;
        } else if kind.is_file() && (name.ends_with(".yaml") || name.ends_with(".yml")) {
            if sources.len() >= FILES_MAX {
                return Err(whole(&file, format!("more than {FILES_MAX} files")));
            }
            sources.push(Source { text: read_file(&entry.path(), &file)?, file });
        }
    }
    Ok(())
}

fn read_file(path: &Path, file: &str) -> Result<String, ConfigError> {
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(path).and_then(|opened| opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    opened.map_err(|error| whole(file, format!("cannot be read: {error}")))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > FILE_BYTES_MAX {
        return Err(whole(file, format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| whole(file, "not UTF-8".to_owned()))
}

/// The documents of a file: what stands between lines that begin with `---`. Empty ones and comments alone are passed over.
pub(crate) fn documents(source: &Source) -> Vec<Document<'_>> {
    let mut found = Vec::new();
    let (mut begin, mut lines_before, mut line, mut at) = (0, 0, 0, 0);
    let mut push = |begin: usize, end: usize, lines_before: u32| {
        let text = source.text.get(begin..end).unwrap_or_default();
        let says_something = text.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
        if says_something {
            found.push(Document { file: &source.file, lines_before, text });
        }
    };
    for text in source.text.split_inclusive('\n') {
        line += 1;
        let trimmed = text.trim_end();
        let is_marker = trimmed == "---" || trimmed.starts_with("--- #");
        at += text.len();
        if is_marker {
            push(begin, at - text.len(), lines_before);
            (begin, lines_before) = (at, line);
        }
    }
    push(begin, at, lines_before);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_know_how_many_lines_stand_before_them() {
        let source = Source { file: "a.yaml".into(), text: "# head\n---\na: 1\n---\n# nothing\n---\nb: 2\n".into() };
        let found: Vec<_> = documents(&source).iter().map(|each| (each.lines_before, each.text.to_owned())).collect();
        assert_eq!(found, [(2, "a: 1\n".to_owned()), (6, "b: 2\n".to_owned())]);
    }

    #[test]
    fn hidden_directories_are_passed_over_and_paths_are_in_order() {
        let dir = tempfile::tempdir().expect("directory");
        for file in ["b.yaml", "a/z.yml", ".rondel/x.yaml", "note.txt"] {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("make");
            std::fs::write(path, "a: 1").expect("write");
        }
        let files: Vec<_> = read(dir.path()).expect("read").into_iter().map(|source| source.file).collect();
        assert_eq!(files, ["a/z.yml", "b.yaml"]);
    }

    #[test]
    fn too_large_and_binary_files_are_refused_by_name() {
        let dir = tempfile::tempdir().expect("directory");
        std::fs::write(dir.path().join("a.yaml"), vec![b'#'; 4 * 1024 * 1024 + 1]).expect("write");
        let error = read(dir.path()).expect_err("too large").to_string();
        assert!(error.starts_with("a.yaml:1:1: larger than"), "{error}");
        std::fs::write(dir.path().join("a.yaml"), [0xff, 0xfe]).expect("write");
        let error = read(dir.path()).expect_err("binary").to_string();
        assert!(error.contains("not UTF-8"), "{error}");
    }
}
