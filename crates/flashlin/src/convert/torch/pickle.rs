//! The part of Python's pickle language that torch's state dicts are written in.
//!
//! Policy: a pickle is a program; this runs the handful of instructions that build dicts of tensors, knows the few names that they may call, and calls
//! nothing: a tensor is a record of where its numbers lie. Any other instruction or name is an error that says which. Values are as deep as
//! [`DEEPEST`] and as many as the program is long, so a hostile program takes no more memory than a small multiple of its length.

use std::rc::Rc;

/// Nesting of values.
const DEEPEST: usize = 16;

/// A value on the machine's stack.
#[derive(Clone, Debug)]
pub(super) enum Value {
    None,
    Bool,
    Int(i64),
    Float,
    Text(Rc<str>),
    /// A name of Python: module and attribute.
    Global(Rc<str>),
    Tuple(Rc<Vec<Value>>, usize),
    List(Vec<Value>, usize),
    Dict(Vec<(Value, Value)>, usize),
    Storage(Rc<Storage>),
    Tensor(Rc<Record>),
    Mark,
}

/// A block of numbers in the archive.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Storage {
    /// torch's class, as `FloatStorage`.
    pub kind: String,
    /// Name of the entry.
    pub key: String,
    /// Numbers in it.
    pub len: usize,
}

/// A tensor: a view of a storage.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    pub storage: Rc<Storage>,
    pub offset: usize,
    pub dims: Vec<usize>,
    pub strides: Vec<usize>,
}

type Outcome<T> = std::result::Result<T, String>;

impl Value {
    fn depth(&self) -> usize {
        match self {
            Value::Tuple(_, d) | Value::List(_, d) | Value::Dict(_, d) => *d,
            _ => 0,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Value::None => "None",
            Value::Bool => "a bool",
            Value::Int(_) => "a number",
            Value::Float => "a float",
            Value::Text(_) => "a string",
            Value::Global(_) => "a name",
            Value::Tuple(..) => "a tuple",
            Value::List(..) => "a list",
            Value::Dict(..) => "a dict",
            Value::Storage(_) => "a storage",
            Value::Tensor(_) => "a tensor",
            Value::Mark => "a mark",
        }
    }

    fn size(&self, what: &str) -> Outcome<usize> {
        match self {
            Value::Int(n) if *n >= 0 => Ok(*n as usize),
            Value::Int(n) => Err(format!("{what} is {n}")),
            other => Err(format!("{what} is {}, expected a number", other.kind())),
        }
    }

    fn sizes(&self, what: &str) -> Outcome<Vec<usize>> {
        match self {
            Value::Tuple(items, _) => items.iter().map(|v| v.size(what)).collect(),
            other => Err(format!("{what} is {}, expected a tuple", other.kind())),
        }
    }
}

fn deeper(items: impl IntoIterator<Item = usize>) -> Outcome<usize> {
    match 1 + items.into_iter().max().unwrap_or(0) {
        d if d > DEEPEST => Err(format!("nests values more than {DEEPEST} deep")),
        d => Ok(d),
    }
}

/// Runs the program and returns the tensors of the dict that it leaves, by name.
///
/// # Errors
/// What it does that is not allowed, or what is wrong with it.
pub(super) fn tensors(program: &[u8]) -> Outcome<Vec<(String, Record)>> {
    let mut machine = Machine { program, at: 0, stack: Vec::new(), memo: Vec::new() };
    let Value::Dict(items, _) = machine.run()? else {
        return Err("holds no dict of tensors".into());
    };
    let mut all = Vec::new();
    for (key, value) in items {
        match (key, value) {
            (Value::Text(name), Value::Tensor(record)) => all.push((name.to_string(), (*record).clone())),
            (Value::Text(name), other) => {
                return Err(format!("holds {} under `{name}`, expected a tensor", other.kind()));
            }
            (key, _) => return Err(format!("has {} as a key, expected a string", key.kind())),
        }
    }
    Ok(all)
}

struct Machine<'a> {
    program: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Values that may be fetched again; lists and dicts may not, as they change.
    memo: Vec<Option<Value>>,
}

impl Machine<'_> {
    fn bytes(&mut self, n: usize) -> Outcome<&[u8]> {
        let end = self.at.checked_add(n).filter(|e| *e <= self.program.len());
        let end = end.ok_or("ends in the middle of an instruction")?;
        let bytes = &self.program[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn number(&mut self, n: usize) -> Outcome<u64> {
        Ok(self.bytes(n)?.iter().rev().fold(0, |x, b| x << 8 | u64::from(*b)))
    }

    fn text(&mut self, n: usize) -> Outcome<Rc<str>> {
        let text = std::str::from_utf8(self.bytes(n)?).map_err(|_| "holds a string that is not UTF-8")?;
        Ok(text.into())
    }

    /// Up to the end of the line.
    fn line(&mut self) -> Outcome<String> {
        let rest = &self.program[self.at..];
        let n = rest.iter().position(|b| *b == b'\n').ok_or("ends in the middle of a name")?;
        let text = self.text(n)?.to_string();
        self.at += 1;
        Ok(text)
    }

    fn pop(&mut self) -> Outcome<Value> {
        match self.stack.pop() {
            Some(Value::Mark) | None => Err("takes a value where there is none".into()),
            Some(v) => Ok(v),
        }
    }

    /// The values after the last mark.
    fn marked(&mut self) -> Outcome<Vec<Value>> {
        let mark = self.stack.iter().rposition(|v| matches!(v, Value::Mark));
        let items = self.stack.split_off(mark.ok_or("takes values after a mark that is not there")? + 1);
        self.stack.pop();
        Ok(items)
    }

    fn tuple(&mut self, items: Vec<Value>) -> Outcome<()> {
        let depth = deeper(items.iter().map(Value::depth))?;
        self.stack.push(Value::Tuple(Rc::new(items), depth));
        Ok(())
    }

    fn last(&mut self, n: usize) -> Outcome<()> {
        let mut items = (0..n).map(|_| self.pop()).collect::<Outcome<Vec<_>>>()?;
        items.reverse();
        self.tuple(items)
    }

    fn remember(&mut self, slot: usize) -> Outcome<()> {
        // Slots are counted, so there are never more than instructions.
        if slot > self.program.len() {
            return Err(format!("remembers a value in slot {slot}"));
        }
        if self.memo.len() <= slot {
            self.memo.resize(slot + 1, None);
        }
        self.memo[slot] = match self.stack.last() {
            Some(Value::List(..) | Value::Dict(..) | Value::Mark) | None => None,
            Some(v) => Some(v.clone()),
        };
        Ok(())
    }

    fn fetch(&mut self, slot: usize) -> Outcome<()> {
        let found = self.memo.get(slot).cloned().flatten();
        self.stack.push(
            found.ok_or_else(|| format!("fetches slot {slot}, which holds nothing that may be shared"))?,
        );
        Ok(())
    }

    fn run(&mut self) -> Outcome<Value> {
        loop {
            let at = self.at;
            match self.bytes(1)?[0] {
                b'.' => return self.pop(),
                0x80 => match self.number(1)? {
                    2..=5 => {}
                    v => return Err(format!("is in version {v} of the language; supported: 2 to 5")),
                },
                0x95 => drop(self.number(8)?),
                b'(' => self.stack.push(Value::Mark),
                b'N' => self.stack.push(Value::None),
                0x88 | 0x89 => self.stack.push(Value::Bool),
                b'K' => self.int(1)?,
                b'M' => self.int(2)?,
                b'J' => {
                    let n = self.number(4)? as u32 as i32;
                    self.stack.push(Value::Int(n.into()));
                }
                0x8a => self.long()?,
                b'G' => {
                    self.number(8)?;
                    self.stack.push(Value::Float);
                }
                b'X' => {
                    let n = self.number(4)? as usize;
                    self.string(n)?;
                }
                0x8c => {
                    let n = self.number(1)? as usize;
                    self.string(n)?;
                }
                b'}' => self.stack.push(Value::Dict(Vec::new(), 1)),
                b']' => self.stack.push(Value::List(Vec::new(), 1)),
                b')' => self.tuple(Vec::new())?,
                b't' => {
                    let items = self.marked()?;
                    self.tuple(items)?;
                }
                n @ 0x85..=0x87 => self.last(usize::from(n - 0x84))?,
                b'c' => {
                    let name = format!("{}.{}", self.line()?, self.line()?);
                    self.stack.push(Value::Global(name.into()));
                }
                0x93 => self.stack_global()?,
                b'Q' => self.persistent()?,
                b'R' => self.call()?,
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.insert(vec![key, value])?;
                }
                b'u' => {
                    let items = self.marked()?;
                    self.insert(items)?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.marked()?;
                    self.append(items)?;
                }
                b'b' => self.build()?,
                b'q' => {
                    let slot = self.number(1)? as usize;
                    self.remember(slot)?;
                }
                b'r' => {
                    let slot = self.number(4)? as usize;
                    self.remember(slot)?;
                }
                0x94 => self.remember(self.memo.len())?,
                b'h' => {
                    let slot = self.number(1)? as usize;
                    self.fetch(slot)?;
                }
                b'j' => {
                    let slot = self.number(4)? as usize;
                    self.fetch(slot)?;
                }
                other => {
                    return Err(format!(
                        "uses instruction {other:#04x} at byte {at}, which no state dict needs"
                    ));
                }
            }
        }
    }

    fn int(&mut self, n: usize) -> Outcome<()> {
        let x = self.number(n)?;
        self.stack.push(Value::Int(x as i64));
        Ok(())
    }

    fn string(&mut self, n: usize) -> Outcome<()> {
        let text = self.text(n)?;
        self.stack.push(Value::Text(text));
        Ok(())
    }

    /// A number of up to 8 bytes in two's complement.
    fn long(&mut self) -> Outcome<()> {
        let n = self.number(1)? as usize;
        if n > 8 {
            return Err(format!("holds a number of {n} bytes"));
        }
        let negative = n > 0 && self.program.get(self.at + n - 1).is_some_and(|b| b & 0x80 != 0);
        let x = self.number(n)?;
        let fill = if negative && n < 8 { u64::MAX << (8 * n) } else { 0 };
        self.stack.push(Value::Int((x | fill) as i64));
        Ok(())
    }

    fn stack_global(&mut self) -> Outcome<()> {
        match (self.pop()?, self.pop()?) {
            (Value::Text(name), Value::Text(module)) => {
                self.stack.push(Value::Global(format!("{module}.{name}").into()));
                Ok(())
            }
            _ => Err("makes a name from something else than strings".into()),
        }
    }

    /// `('storage', class, key, location, numbers)`
    fn persistent(&mut self) -> Outcome<()> {
        let Value::Tuple(items, _) = self.pop()? else {
            return Err("refers to something that is no storage".into());
        };
        let [Value::Text(tag), Value::Global(kind), Value::Text(key), Value::Text(_), len] = &items[..]
        else {
            return Err("refers to something that is no storage".into());
        };
        let class = kind.strip_prefix("torch.").filter(|k| k.ends_with("Storage"));
        match (&**tag, class) {
            ("storage", Some(kind)) => {
                let storage =
                    Storage { kind: kind.into(), key: key.to_string(), len: len.size("a storage's length")? };
                self.stack.push(Value::Storage(Rc::new(storage)));
                Ok(())
            }
            _ => Err(format!("refers to a `{tag}` of class {kind}, expected a storage of torch")),
        }
    }

    fn call(&mut self) -> Outcome<()> {
        let (args, callee) = (self.pop()?, self.pop()?);
        let (Value::Tuple(args, _), Value::Global(name)) = (&args, &callee) else {
            return Err(format!("calls {} with {}", callee.kind(), args.kind()));
        };
        let value = match (&**name, &args[..]) {
            ("collections.OrderedDict", []) => Value::Dict(Vec::new(), 1),
            ("torch._utils._rebuild_tensor_v2", [Value::Storage(storage), offset, dims, strides, ..]) => {
                Value::Tensor(Rc::new(Record {
                    storage: storage.clone(),
                    offset: offset.size("a tensor's offset")?,
                    dims: dims.sizes("a tensor's size")?,
                    strides: strides.sizes("a tensor's stride")?,
                }))
            }
            ("torch._utils._rebuild_parameter", [Value::Tensor(t), ..]) => Value::Tensor(t.clone()),
            (
                "collections.OrderedDict"
                | "torch._utils._rebuild_tensor_v2"
                | "torch._utils._rebuild_parameter",
                _,
            ) => {
                return Err(format!("calls {name} with other arguments than torch does"));
            }
            _ => return Err(format!("calls {name}, which is not allowed")),
        };
        self.stack.push(value);
        Ok(())
    }

    fn insert(&mut self, items: Vec<Value>) -> Outcome<()> {
        let inner = deeper(items.iter().map(Value::depth))?;
        let Some(Value::Dict(dict, depth)) = self.stack.last_mut() else {
            return Err("puts items into something that is no dict".into());
        };
        if items.len() % 2 == 1 {
            return Err("puts a key without a value into a dict".into());
        }
        *depth = inner.max(*depth);
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            dict.push((key, value));
        }
        Ok(())
    }

    fn append(&mut self, items: Vec<Value>) -> Outcome<()> {
        let inner = deeper(items.iter().map(Value::depth))?;
        let Some(Value::List(list, depth)) = self.stack.last_mut() else {
            return Err("appends to something that is no list".into());
        };
        *depth = inner.max(*depth);
        list.extend(items);
        Ok(())
    }

    /// Attributes of the dict below (torch keeps versions there): dropped.
    fn build(&mut self) -> Outcome<()> {
        self.pop()?;
        match self.stack.last() {
            Some(Value::Dict(..)) => Ok(()),
            other => Err(format!("sets attributes of {}", other.map_or("nothing", Value::kind))),
        }
    }
}
