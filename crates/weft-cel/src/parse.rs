//! Tokens to a tree, by CEL's precedence: `?:`, `||`, `&&`, relations, `+ -`, `* / %`, unary, member.

use regex::RegexBuilder;

use crate::lex::{Token, tokens};
use crate::{
    Binary, CelError, Convert, DEPTH_MAX, EXPRESSION_BYTES_MAX, Literal, Node, REGEX_BYTES_MAX,
    TextTest,
};

pub(crate) fn parse(text: &str) -> Result<Node, CelError> {
    if text.len() > EXPRESSION_BYTES_MAX {
        let reason = format!("the expression has more than {EXPRESSION_BYTES_MAX} bytes");
        return Err(CelError { at: 0, reason });
    }
    let mut parser = Parser { tokens: tokens(text)?, next: 0, depth: 0 };
    let root = parser.expression()?;
    match parser.peek() {
        Token::End => Ok(root),
        _ => parser.unexpected(),
    }
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    next: usize,
    depth: usize,
}

type Parsed = Result<Node, CelError>;

/// Tighter binding is further down.
const LEVELS: [&[(&str, Binary)]; 3] = [
    &[
        ("==", Binary::Equal),
        ("!=", Binary::NotEqual),
        ("<=", Binary::LessOrEqual),
        (">=", Binary::GreaterOrEqual),
        ("<", Binary::Less),
        (">", Binary::Greater),
        ("in", Binary::In),
    ],
    &[("+", Binary::Add), ("-", Binary::Subtract)],
    &[("*", Binary::Multiply), ("/", Binary::Divide), ("%", Binary::Remainder)],
];

impl Parser {
    fn expression(&mut self) -> Parsed {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return self.wrong("the expression is nested too deeply");
        }
        let condition = self.or()?;
        let node = match self.takes("?") {
            false => condition,
            true => {
                let yes = self.or()?;
                self.expect(":")?;
                let no = self.expression()?;
                Node::Choose(Box::new((condition, yes, no)))
            }
        };
        self.depth -= 1;
        Ok(node)
    }

    fn or(&mut self) -> Parsed {
        let mut left = self.and()?;
        while self.takes("||") {
            left = Node::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Parsed {
        let mut left = self.level(0)?;
        while self.takes("&&") {
            left = Node::And(Box::new(left), Box::new(self.level(0)?));
        }
        Ok(left)
    }

    fn level(&mut self, level: usize) -> Parsed {
        let Some(signs) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.level(level + 1)?;
        'more: loop {
            for (sign, binary) in *signs {
                if self.takes(sign) {
                    let right = self.level(level + 1)?;
                    left = Node::Binary(*binary, Box::new(left), Box::new(right));
                    continue 'more;
                }
            }
            return Ok(left);
        }
    }

    fn unary(&mut self) -> Parsed {
        // Counted: `!!!!…` nests as brackets do.
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return self.wrong("the expression is nested too deeply");
        }
        let node = if self.takes("!") {
            Node::Not(Box::new(self.unary()?))
        } else if self.takes("-") {
            Node::Negate(Box::new(self.unary()?))
        } else {
            self.member()?
        };
        self.depth -= 1;
        Ok(node)
    }

    fn member(&mut self) -> Parsed {
        let mut node = self.primary()?;
        loop {
            if self.takes(".") {
                let name = self.name()?;
                node = match (self.takes("("), node) {
                    (true, subject) => self.method(&name, subject)?,
                    (false, Node::Attribute(mut path)) => {
                        path.push(name.into());
                        Node::Attribute(path)
                    }
                    (false, _) => return self.wrong("only attributes have fields"),
                };
            } else if self.takes("[") {
                let at = self.at();
                let index = self.expression()?;
                self.expect("]")?;
                node = match (node, index) {
                    (Node::Attribute(mut path), Node::Literal(Literal::Text(key))) => {
                        // Header names are lower case wherever they are looked up.
                        let is_header = path
                            .last()
                            .is_some_and(|last| matches!(&**last, "headers" | "trailers"));
                        path.push(match is_header {
                            true => key.to_ascii_lowercase().into(),
                            false => key,
                        });
                        Node::Attribute(path)
                    }
                    (Node::Attribute(mut path), Node::Literal(Literal::Int(index))) => {
                        path.push(index.to_string().into());
                        Node::Attribute(path)
                    }
                    _ => {
                        let reason = "only attributes are indexed, by a literal".to_owned();
                        return Err(CelError { at, reason });
                    }
                };
            } else {
                return Ok(node);
            }
        }
    }

    fn primary(&mut self) -> Parsed {
        let at = self.at();
        match self.take() {
            Token::Int(value) => Ok(Node::Literal(Literal::Int(value))),
            Token::Double(value) => Ok(Node::Literal(Literal::Double(value))),
            Token::Text(text) => Ok(Node::Literal(Literal::Text(text.into()))),
            Token::Sign("(") => {
                let node = self.expression()?;
                self.expect(")")?;
                Ok(node)
            }
            Token::Sign("[") => self.list().map(Node::List),
            Token::Name(name) => match &*name {
                "true" => Ok(Node::Literal(Literal::Bool(true))),
                "false" => Ok(Node::Literal(Literal::Bool(false))),
                "null" => Ok(Node::Literal(Literal::Null)),
                _ if self.takes("(") => self.function(&name, at),
                _ => Ok(Node::Attribute(vec![name.into()])),
            },
            _ => {
                self.next = self.next.saturating_sub(1);
                self.unexpected()
            }
        }
    }

    /// After `[`.
    fn list(&mut self) -> Result<Vec<Node>, CelError> {
        let mut items = Vec::new();
        while !self.takes("]") {
            items.push(self.expression()?);
            if !self.takes(",") {
                self.expect("]")?;
                break;
            }
        }
        Ok(items)
    }

    /// `name(` was read.
    fn function(&mut self, name: &str, at: usize) -> Parsed {
        let argument = self.expression()?;
        if name == "matches" {
            self.expect(",")?;
            return self.matches(argument);
        }
        self.expect(")")?;
        let argument = match (name, argument) {
            ("has", Node::Attribute(path)) if path.len() > 1 => return Ok(Node::Has(path)),
            ("has", _) => {
                let reason = "has() takes an attribute with a field".to_owned();
                return Err(CelError { at, reason });
            }
            (_, argument) => Box::new(argument),
        };
        Ok(Node::Convert(
            match name {
                "size" => Convert::Size,
                "string" => Convert::Text,
                "int" | "uint" => Convert::Int,
                "double" => Convert::Double,
                _ => {
                    let reason = format!("the function {name:?} is not supported");
                    return Err(CelError { at, reason });
                }
            },
            argument,
        ))
    }

    /// `.name(` was read.
    fn method(&mut self, name: &str, subject: Node) -> Parsed {
        let subject = Box::new(subject);
        let test = match name {
            "matches" => return self.matches(*subject),
            "size" | "lowerAscii" | "upperAscii" => {
                self.expect(")")?;
                let convert = match name {
                    "size" => Convert::Size,
                    "lowerAscii" => Convert::LowerCase,
                    _ => Convert::UpperCase,
                };
                return Ok(Node::Convert(convert, subject));
            }
            "contains" => TextTest::Contains,
            "startsWith" => TextTest::StartsWith,
            "endsWith" => TextTest::EndsWith,
            _ => return self.wrong(&format!("the function {name:?} is not supported")),
        };
        let argument = self.expression()?;
        self.expect(")")?;
        Ok(Node::Text(test, subject, Box::new(argument)))
    }

    /// The pattern of `matches`, and the closing bracket.
    fn matches(&mut self, subject: Node) -> Parsed {
        let at = self.at();
        let pattern = self.expression()?;
        self.expect(")")?;
        let Node::Literal(Literal::Text(pattern)) = pattern else {
            return Err(CelError { at, reason: "the pattern must be a literal".into() });
        };
        match RegexBuilder::new(&pattern).size_limit(REGEX_BYTES_MAX).build() {
            Ok(regex) => Ok(Node::Matches(Box::new(subject), regex)),
            Err(error) => Err(CelError { at, reason: format!("bad pattern: {error}") }),
        }
    }

    fn name(&mut self) -> Result<String, CelError> {
        match self.take() {
            Token::Name(name) => Ok(name),
            _ => {
                self.next = self.next.saturating_sub(1);
                self.unexpected()
            }
        }
    }

    fn peek(&self) -> &Token {
        self.tokens.get(self.next).map_or(&Token::End, |(_, token)| token)
    }

    fn take(&mut self) -> Token {
        let token = self.peek().clone();
        self.next += 1;
        token
    }

    fn takes(&mut self, wanted: &str) -> bool {
        let found = match self.peek() {
            Token::Sign(sign) => *sign == wanted,
            Token::Name(name) => wanted == "in" && name == "in",
            _ => false,
        };
        self.next += usize::from(found);
        found
    }

    fn expect(&mut self, wanted: &str) -> Result<(), CelError> {
        match self.takes(wanted) {
            true => Ok(()),
            false => self.wrong(&format!("expected {wanted:?}")),
        }
    }

    fn at(&self) -> usize {
        self.tokens.get(self.next).or(self.tokens.last()).map_or(0, |(at, _)| *at)
    }

    fn wrong<T>(&self, reason: &str) -> Result<T, CelError> {
        Err(CelError { at: self.at(), reason: reason.to_owned() })
    }

    fn unexpected<T>(&self) -> Result<T, CelError> {
        self.wrong(&match self.peek() {
            Token::End => "the expression ends too early".to_owned(),
            Token::Name(name) => format!("unexpected {name:?}"),
            Token::Sign(sign) => format!("unexpected {sign:?}"),
            Token::Int(_) | Token::Double(_) | Token::Text(_) => "unexpected literal".to_owned(),
        })
    }
}
