//! What tasks need besides a tokenizer, from files that the user names.
//!
//! | source | for | file |
//! |---|---|---|
//! | words | all needles with words as keys, `ruler_cwe` | a folder with `nounlist.txt`, `adjectivelist.txt`, `verblist.txt`, a word a line (those of the Python package `wonderwords` are `lm_eval`'s) |
//! | essays | `niah_single_2`, `niah_single_3`, `niah_multikey_1`, `niah_multivalue`, `niah_multiquery` | any text, or a sentence a line |
//! | squad | `ruler_qa_squad` | `dev-v2.0.json` of SQuAD, or a file of its form |
//! | hotpot | `ruler_qa_hotpot` | `hotpot_dev_distractor_v1.json`, or a file of its form |

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
};

use serde::{Deserialize, de::DeserializeOwned};

use super::Draws;
use crate::{Error, Result, text::is_blank};

/// Everything that was given.
#[derive(Default)]
pub struct Sources {
    /// Words.
    pub words: Option<Words>,
    /// Essays.
    pub essays: Option<Essays>,
    /// SQuAD.
    pub squad: Option<Questions>,
    /// HotpotQA.
    pub hotpot: Option<Questions>,
}

fn missing(option: &'static str, what: &str) -> Error {
    Error::option(option, format!("is needed by the chosen tasks: {what}"))
}

impl Sources {
    pub(super) fn words(&self) -> Result<&Words> {
        let what = "a folder with nounlist.txt, adjectivelist.txt and verblist.txt (the Python package wonderwords has them in its folder `assets`)";
        self.words.as_ref().ok_or_else(|| missing("words", what))
    }

    pub(super) fn essays(&self) -> Result<&Essays> {
        let what = "a text file to hide needles in (lm_eval takes Paul Graham's essays)";
        self.essays.as_ref().ok_or_else(|| missing("essays", what))
    }

    pub(super) fn squad(&self) -> Result<&Questions> {
        self.squad.as_ref().ok_or_else(|| missing("squad", "SQuAD's dev-v2.0.json, or a file of its form"))
    }

    pub(super) fn hotpot(&self) -> Result<&Questions> {
        let what = "HotpotQA's hotpot_dev_distractor_v1.json, or a file of its form";
        self.hotpot.as_ref().ok_or_else(|| missing("hotpot", what))
    }
}

/// Words by kind.
pub struct Words {
    nouns: Vec<String>,
    adjectives: Vec<String>,
    all: Vec<String>,
}

impl Words {
    /// Reads the three lists of a folder.
    ///
    /// # Errors
    /// A list that is missing or empty.
    pub fn open(dir: &Path) -> Result<Words> {
        let list = |name: &str| -> Result<Vec<String>> {
            let path = dir.join(name);
            let text = std::fs::read_to_string(&path).map_err(Error::io(&path, "reading"))?;
            let words: Vec<String> = text
                .lines()
                .map(|l| l.trim_end_matches(is_blank).to_string())
                .filter(|w| !w.is_empty())
                .collect();
            if words.is_empty() { Err(Error::file(&path, "holds no word")) } else { Ok(words) }
        };
        let (nouns, adjectives, verbs) =
            (list("nounlist.txt")?, list("adjectivelist.txt")?, list("verblist.txt")?);
        let all: BTreeSet<String> = nouns.iter().chain(&adjectives).chain(&verbs).cloned().collect();
        Ok(Words { nouns, adjectives, all: all.into_iter().collect() })
    }

    /// All different words, sorted.
    pub(super) fn all(&self) -> &[String] {
        &self.all
    }

    /// `adjective-noun`.
    pub(super) fn pair(&self, draws: &mut Draws) -> String {
        let adjective = &self.adjectives[draws.below(self.adjectives.len())];
        format!("{adjective}-{}", self.nouns[draws.below(self.nouns.len())])
    }
}

/// A long text, as words and sentences.
pub struct Essays {
    words: Vec<String>,
    /// For each sentence the number of words up to its end.
    ends: Vec<usize>,
}

impl Essays {
    /// Reads text files; sentences end at `.`, `!`, `?` and ellipses, abbreviations and initials aside.
    ///
    /// # Errors
    /// Files that cannot be read or hold no word.
    pub fn open(paths: &[impl AsRef<Path>]) -> Result<Essays> {
        let text = read_all(paths)?;
        let words: Vec<String> = text.split(is_blank).filter(|w| !w.is_empty()).map(String::from).collect();
        let next = |i: usize| words.get(i + 1).map(String::as_str);
        let ends = (0..words.len()).filter(|&i| ends_sentence(&words[i], next(i))).map(|i| i + 1).collect();
        Essays { words, ends }.checked(paths)
    }

    /// Reads files with a sentence a line: the sentences that another program found.
    ///
    /// # Errors
    /// As [`Essays::open`].
    pub fn open_sentences(paths: &[impl AsRef<Path>]) -> Result<Essays> {
        let (mut words, mut ends) = (Vec::new(), Vec::new());
        for line in read_all(paths)?.lines() {
            words.extend(line.split(is_blank).filter(|w| !w.is_empty()).map(String::from));
            ends.push(words.len());
        }
        ends.dedup();
        ends.retain(|&e| e > 0);
        Essays { words, ends }.checked(paths)
    }

    fn checked(self, paths: &[impl AsRef<Path>]) -> Result<Essays> {
        match paths.first() {
            Some(path) if self.words.is_empty() => Err(Error::file(path.as_ref(), "holds no word")),
            _ => Ok(self),
        }
    }

    /// Number of words.
    pub(super) fn len(&self) -> usize {
        self.words.len()
    }

    /// The sentences of the first `n` words; the last one may be cut.
    pub(super) fn sentences(&self, n: usize) -> Vec<String> {
        let n = n.min(self.words.len());
        let ends = self.ends.iter().copied().take_while(|&e| e < n).chain([n]);
        let mut at = 0;
        ends.map(|end| self.words[std::mem::replace(&mut at, end)..end].join(" ")).collect()
    }
}

fn read_all(paths: &[impl AsRef<Path>]) -> Result<String> {
    let mut text = String::new();
    for path in paths {
        let path = path.as_ref();
        text += &std::fs::read_to_string(path).map_err(Error::io(path, "reading"))?;
        text.push('\n');
    }
    Ok(text)
}

/// Whether a sentence ends with `word`: at `.`, `!`, `?` or an ellipsis, perhaps in quotes or brackets, where it is no known
/// abbreviation or initial and no small letter follows.
fn ends_sentence(word: &str, next: Option<&str>) -> bool {
    const SHORT: [&str; 24] = [
        "mr", "mrs", "ms", "dr", "prof", "st", "vs", "etc", "e.g", "i.e", "cf", "jr", "sr", "inc", "ltd",
        "co", "no", "vol", "fig", "al", "gen", "rev", "approx", "dept",
    ];
    let bare = word.trim_end_matches(['"', '\'', ')', ']', '}', '\u{201d}', '\u{2019}', '\u{bb}']);
    let Some(last) = bare.chars().next_back().filter(|c| ".!?\u{2026}".contains(*c)) else { return false };
    let small = next.and_then(|n| n.chars().find(|c| c.is_alphanumeric())).is_some_and(char::is_lowercase);
    if small || last != '.' {
        return !small;
    }
    let stem = bare.trim_end_matches('.').trim_start_matches(['"', '\'', '(', '[', '{']);
    let initial = stem.chars().count() == 1 && stem.chars().all(char::is_uppercase);
    !initial && !SHORT.contains(&stem.to_lowercase().as_str())
}

/// Questions, their answers and documents.
pub struct Questions {
    pub(super) documents: Vec<String>,
    pub(super) items: Vec<Question>,
}

pub(super) struct Question {
    pub query: String,
    pub answers: Vec<String>,
    /// Documents that hold the answer.
    pub documents: Vec<usize>,
    /// Documents on the same matter, which are taken first.
    pub related: Vec<usize>,
}

#[derive(Deserialize)]
struct Squad {
    data: Vec<SquadArticle>,
}

#[derive(Deserialize)]
struct SquadArticle {
    paragraphs: Vec<SquadParagraph>,
}

#[derive(Deserialize)]
struct SquadParagraph {
    context: String,
    qas: Vec<SquadQuestion>,
}

#[derive(Deserialize)]
struct SquadQuestion {
    question: String,
    #[serde(default)]
    is_impossible: bool,
    answers: Vec<SquadAnswer>,
}

#[derive(Deserialize)]
struct SquadAnswer {
    text: String,
}

#[derive(Deserialize)]
struct Hotpot {
    question: String,
    answer: String,
    context: Vec<(String, Vec<String>)>,
}

impl Questions {
    /// Reads a file of SQuAD 2.0's form; questions without an answer are left out.
    ///
    /// # Errors
    /// A file that cannot be read or is of another form.
    pub fn open_squad(path: &Path) -> Result<Questions> {
        let squad: Squad = json(path)?;
        let contexts = || squad.data.iter().flat_map(|a| &a.paragraphs).map(|p| p.context.clone());
        let (documents, place) = numbered(contexts());
        let mut items = Vec::new();
        for article in &squad.data {
            let all: Vec<usize> = article.paragraphs.iter().map(|p| place[&p.context]).collect();
            for p in &article.paragraphs {
                let own = place[&p.context];
                for q in p.qas.iter().filter(|q| !q.is_impossible) {
                    items.push(Question {
                        query: q.question.clone(),
                        answers: q.answers.iter().map(|a| a.text.clone()).collect(),
                        documents: vec![own],
                        related: all.iter().copied().filter(|&d| d != own).collect(),
                    });
                }
            }
        }
        Questions { documents, items }.checked(path)
    }

    /// Reads a file of HotpotQA's form.
    ///
    /// # Errors
    /// A file that cannot be read or is of another form.
    pub fn open_hotpot(path: &Path) -> Result<Questions> {
        let all: Vec<Hotpot> = json(path)?;
        let text = |(title, sentences): &(String, Vec<String>)| format!("{title}\n{}", sentences.concat());
        let (documents, place) = numbered(all.iter().flat_map(|q| q.context.iter().map(text)));
        let item = |q: &Hotpot| Question {
            query: q.question.clone(),
            answers: vec![q.answer.clone()],
            documents: q.context.iter().map(|d| place[&text(d)]).collect(),
            related: Vec::new(),
        };
        let items = all.iter().map(item).collect();
        Questions { documents, items }.checked(path)
    }

    fn checked(self, path: &Path) -> Result<Questions> {
        match self.items.iter().position(|q| q.answers.is_empty()) {
            _ if self.items.is_empty() => Err(Error::file(path, "holds no question that has an answer")),
            Some(i) => Err(Error::file(path, format!("question {i} (from 0) has no answer"))),
            None => Ok(self),
        }
    }
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let raw = std::fs::read(path).map_err(Error::io(path, "reading"))?;
    serde_json::from_slice(&raw).map_err(|e| Error::file(path, format!("is not of the expected form: {e}")))
}

/// Different texts, sorted, and the place of each.
fn numbered(texts: impl Iterator<Item = String>) -> (Vec<String>, HashMap<String, usize>) {
    let sorted: BTreeSet<String> = texts.collect();
    let all: Vec<String> = sorted.into_iter().collect();
    let place = all.iter().enumerate().map(|(i, t)| (t.clone(), i)).collect();
    (all, place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_end_where_they_should() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "Mr. Smith went (with J. Doe.) He saw \"it!\" Why? e.g. this. then\nmore... And on";
        std::fs::write(file.path(), text).unwrap();
        let essays = Essays::open(&[file.path()]).unwrap();
        let all = essays.sentences(usize::MAX);
        assert_eq!(
            all,
            ["Mr. Smith went (with J. Doe.)", "He saw \"it!\"", "Why? e.g. this. then more...", "And on"]
        );
        assert_eq!(essays.sentences(7), ["Mr. Smith went (with J. Doe.)", "He"]);
        std::fs::write(file.path(), "One two. Three\n\nfour\n").unwrap();
        let given = Essays::open_sentences(&[file.path()]).unwrap();
        assert_eq!(given.sentences(9), ["One two. Three", "four"]);
        std::fs::write(file.path(), " \n").unwrap();
        assert!(Essays::open(&[file.path()]).is_err() && Words::open(file.path()).is_err());
    }
}
