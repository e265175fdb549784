//! A connection to the database, and what is said over it.
//!
//! The database has a thread of its own, and a trip there costs more than most statements. What is only written
//! waits therefore, and goes along with what is read next, or with the commit.

use std::borrow::Cow;
use std::fmt::Write as _;

use sqlx::any::{AnyArguments, AnyConnectOptions, AnyRow};
use sqlx::error::BoxDynError;
use sqlx::{AnyConnection, Arguments as _, AssertSqlSafe, Connection as _};

use super::StoreError;
use super::row::unreadable;

/// So many values go together at most: what is prepared for them stays in memory.
const MOST_VALUES: usize = 120;
/// Statements with more go alone, so that each is prepared once and not once for each company it is in.
const MANY: usize = 60;

/// See the module's documentation.
pub struct Connection {
    connection: AnyConnection,
    waiting: Statement,
    /// Whether anything has gone since the last [`Connection::begin`].
    has_begun: bool,
    #[cfg(test)]
    pub(super) trips: usize,
}

impl Connection {
    pub(super) async fn open(options: &AnyConnectOptions) -> Result<Self, sqlx::Error> {
        let mut connection = AnyConnection::connect_with(options).await?;
        super::prepare(&mut connection).await?;
        Ok(Self::over(connection))
    }

    pub(super) fn over(connection: AnyConnection) -> Self {
        Self {
            connection,
            waiting: Statement::default(),
            has_begun: false,
            #[cfg(test)]
            trips: 0,
        }
    }

    /// Goes before whatever comes next.
    pub(super) fn begin(&mut self, text: &'static str) {
        self.waiting = sql(text);
        self.has_begun = false;
    }

    pub(super) const fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// What waits is not to be done.
    pub(super) fn forget(&mut self) {
        self.waiting = Statement::default();
    }

    /// Goes after all that waits, in one trip with it.
    pub(super) async fn end(&mut self, text: &'static str) -> Result<(), StoreError> {
        let mut all = std::mem::take(&mut self.waiting);
        all.append(sql(text));
        self.go(all).await.map(drop)
    }

    pub(super) async fn close(self) -> Result<(), sqlx::Error> {
        self.connection.close().await
    }

    /// What waits goes now.
    pub(super) async fn send(&mut self) -> Result<(), StoreError> {
        let waiting = std::mem::take(&mut self.waiting);
        if waiting.text.is_empty() {
            return Ok(());
        }
        self.go(waiting).await.map(drop)
    }

    async fn go(&mut self, statement: Statement) -> Result<Vec<AnyRow>, StoreError> {
        let Statement { text, values } = statement;
        let mut arguments = AnyArguments::default();
        for value in values {
            value.add_to(&mut arguments).map_err(sqlx::Error::Encode)?;
        }
        self.has_begun = true;
        #[cfg(test)]
        {
            self.trips += 1;
        }
        let query = sqlx::query_with(AssertSqlSafe(text.into_owned()), arguments);
        Ok(query.fetch_all(&mut self.connection).await?)
    }
}

/// SQL with its values.
#[derive(Default)]
pub(super) struct Statement {
    text: Cow<'static, str>,
    values: Vec<Value>,
}

/// SQL whose parameters are numbered (`$1`), or all in their order (`?`): the database looks numbers up one by one,
/// which tells where there are hundreds.
pub(super) fn sql(text: impl Into<Cow<'static, str>>) -> Statement {
    Statement {
        text: text.into(),
        values: Vec::new(),
    }
}

impl Statement {
    pub(super) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    pub(super) async fn rows(self, connection: &mut Connection) -> Result<Vec<AnyRow>, StoreError> {
        if self.has_many() {
            connection.send().await?;
        }
        let mut all = std::mem::take(&mut connection.waiting);
        all.append(self);
        connection.go(all).await
    }

    pub(super) async fn row(self, connection: &mut Connection) -> Result<Option<AnyRow>, StoreError> {
        Ok(self.rows(connection).await?.into_iter().next())
    }

    /// The row of a statement that always has one.
    pub(super) async fn one(self, connection: &mut Connection) -> Result<AnyRow, StoreError> {
        let row = self.row(connection).await?;
        row.ok_or_else(|| unreadable("row", "missing"))
    }

    /// For what gives no rows. Should it fail, what it goes along with fails.
    pub(super) async fn write(self, connection: &mut Connection) -> Result<(), StoreError> {
        let together = connection.waiting.values.len().saturating_add(self.values.len());
        if self.has_many() || together > MOST_VALUES {
            connection.send().await?;
        }
        if self.has_many() {
            return connection.go(self).await.map(drop);
        }
        connection.waiting.append(self);
        Ok(())
    }

    fn has_many(&self) -> bool {
        self.values.len() > MANY
    }

    /// Puts another one behind this one.
    fn append(&mut self, other: Self) {
        if self.text.is_empty() {
            *self = other;
            return;
        }
        let before = self.values.len();
        let text = self.text.to_mut();
        text.push_str("; ");
        let (mut rest, mut unnumbered) = (other.text.as_ref(), 0);
        while let Some(place) = rest.find(['$', '?']) {
            let (piece, parameter) = rest.split_at(place);
            let digits = parameter.bytes().skip(1).take_while(u8::is_ascii_digit).count();
            let (parameter, behind) = parameter.split_at(1 + digits);
            unnumbered += 1;
            let number = parameter[1..].parse::<usize>().unwrap_or(unnumbered);
            // Writing to a string can't fail.
            write!(text, "{piece}${}", before + number).unwrap_or_default();
            rest = behind;
        }
        text.push_str(rest);
        self.values.extend(other.values);
    }
}

/// What a column holds.
pub(super) enum Value {
    Text(Option<String>),
    Number(Option<i64>),
    Bytes(Option<Vec<u8>>),
}

impl Value {
    fn add_to(self, arguments: &mut AnyArguments) -> Result<(), BoxDynError> {
        match self {
            Self::Text(text) => arguments.add(text),
            Self::Number(number) => arguments.add(number),
            Self::Bytes(bytes) => arguments.add(bytes),
        }
    }
}

macro_rules! values {
    ($($kind:ident: $($from:ty),+;)+) => {$($(
        impl From<$from> for Value {
            fn from(value: $from) -> Self {
                Self::$kind(Some(value.into()))
            }
        }

        impl From<Option<$from>> for Value {
            fn from(value: Option<$from>) -> Self {
                Self::$kind(value.map(Into::into))
            }
        }
    )+)+};
}

values! {
    Text: String, &String, &str;
    Number: i64;
    Bytes: Vec<u8>, &[u8];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_numbered_on_through_all_that_goes_together() {
        let mut all = sql("BEGIN");
        all.append(sql("INSERT INTO a VALUES ($1, $2)").bind("x").bind(1));
        all.append(
            sql("UPDATE a SET b = $2 WHERE c = $1 AND d = $10")
                .bind(2)
                .bind(None::<String>),
        );
        all.append(sql("INSERT INTO a VALUES (?, ?)").bind(3).bind(4));
        assert_eq!(
            all.text,
            "BEGIN; INSERT INTO a VALUES ($1, $2); UPDATE a SET b = $4 WHERE c = $3 AND d = $12; \
             INSERT INTO a VALUES ($5, $6)"
        );
        assert_eq!(all.values.len(), 6);
    }
}
