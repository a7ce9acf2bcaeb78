//! The ids in row events. No IO.
//!
//! The relay reads rows from the table, so an event is read for two integers alone: `id` and `status`.
//! All other values are passed over by their length, whatever is in them.

/// Where the two columns are in the table, and how many columns it has.
///
/// The binlog names no columns unless `binlog_row_metadata=FULL`, so the names are read from
/// `information_schema` when the stream is opened. An `ALTER TABLE` is a doubt, and another stream is
/// opened after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    count: usize,
    id: usize,
    status: usize,
}

impl Columns {
    /// Finds both among `names`, the table's columns in their order.
    ///
    /// # Errors
    /// The name of the one that the table does not have.
    pub fn locate(names: &[String]) -> Result<Self, String> {
        let at = |name: &str| {
            names
                .iter()
                .position(|column| column.eq_ignore_ascii_case(name))
                .ok_or_else(|| format!("the table has no column `{name}`"))
        };
        Ok(Self {
            count: names.len(),
            id: at("id")?,
            status: at("status")?,
        })
    }
}

/// A table map: how long the values of each column are.
#[derive(Clone, Debug)]
pub struct TableMap {
    kinds: Vec<Kind>,
    columns: Columns,
}

/// How the length of a value is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// An integer of so many bytes.
    Integer(usize),
    /// So many bytes.
    Fixed(usize),
    /// A length of so many bytes, and then the value.
    Prefixed(usize),
}

/// Codes of column types, as table maps have them.
mod code {
    pub(super) const TINY: u8 = 1;
    pub(super) const SHORT: u8 = 2;
    pub(super) const LONG: u8 = 3;
    pub(super) const FLOAT: u8 = 4;
    pub(super) const DOUBLE: u8 = 5;
    pub(super) const NULL: u8 = 6;
    pub(super) const TIMESTAMP: u8 = 7;
    pub(super) const LONG_LONG: u8 = 8;
    pub(super) const INT24: u8 = 9;
    pub(super) const DATE: u8 = 10;
    pub(super) const TIME: u8 = 11;
    pub(super) const DATETIME: u8 = 12;
    pub(super) const YEAR: u8 = 13;
    pub(super) const VARCHAR: u8 = 15;
    pub(super) const BIT: u8 = 16;
    pub(super) const TIMESTAMP2: u8 = 17;
    pub(super) const DATETIME2: u8 = 18;
    pub(super) const TIME2: u8 = 19;
    /// MariaDB's compressed BLOB and VARCHAR: their values are like those of the plain types.
    pub(super) const BLOB_COMPRESSED: u8 = 140;
    pub(super) const VARCHAR_COMPRESSED: u8 = 141;
    /// MySQL 9.
    pub(super) const VECTOR: u8 = 242;
    pub(super) const JSON: u8 = 245;
    pub(super) const DECIMAL: u8 = 246;
    pub(super) const ENUM: u8 = 247;
    pub(super) const SET: u8 = 248;
    pub(super) const TINY_BLOB: u8 = 249;
    pub(super) const MEDIUM_BLOB: u8 = 250;
    pub(super) const LONG_BLOB: u8 = 251;
    pub(super) const BLOB: u8 = 252;
    pub(super) const STRING: u8 = 254;
    pub(super) const GEOMETRY: u8 = 255;
}

/// What is left to be read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or("an event that is cut short")?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    /// An integer of `count` bytes, the lowest first.
    fn integer(&mut self, count: usize) -> Result<u64, String> {
        let bytes = self.take(count)?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn length(&mut self, count: usize) -> Result<usize, String> {
        usize::try_from(self.integer(count)?).map_err(|_| "a length that is too large".into())
    }

    /// A length-encoded integer of MySQL's protocol.
    fn packed(&mut self) -> Result<usize, String> {
        match self.byte()? {
            first @ 0..=250 => Ok(usize::from(first)),
            252 => self.length(2),
            253 => self.length(3),
            254 => self.length(8),
            _ => Err("a length that is none".into()),
        }
    }
}

impl TableMap {
    /// Reads a table map's data.
    ///
    /// # Errors
    /// It is cut short, has fewer columns than the table had, or a column of an unknown type.
    pub fn parse(data: &[u8], columns: Columns) -> Result<Self, String> {
        let mut bytes = Bytes(data);
        // Table id and flags.
        bytes.take(8)?;
        for _ in 0..2 {
            // The schema's and the table's name, each with a 0 behind it.
            let length = usize::from(bytes.byte()?);
            bytes.take(length + 1)?;
        }
        let count = bytes.packed()?;
        // MariaDB has hidden columns behind the others: of SYSTEM VERSIONING, or of a UNIQUE BLOB.
        if count < columns.count {
            let known = columns.count;
            return Err(format!("{count} columns where the table had {known}"));
        }
        let types = bytes.take(count)?;
        let length = bytes.packed()?;
        let mut metadata = Bytes(bytes.take(length)?);
        let kinds = types
            .iter()
            .map(|column_type| kind_of(*column_type, &mut metadata))
            .collect::<Result<_, _>>()?;
        Ok(Self { kinds, columns })
    }

    /// The ids that an INSERT has added, in its order.
    ///
    /// # Errors
    /// What can't be decoded.
    pub fn inserted(&self, event_type: u8, data: &[u8]) -> Result<Vec<u64>, String> {
        let mut bytes = self.rows_of(event_type, data)?;
        let present = Present::read(&mut bytes, self.kinds.len())?;
        let mut ids = Vec::new();
        while !bytes.0.is_empty() {
            let image = self.image(&mut bytes, &present)?;
            ids.push(image.id.ok_or("a row image without its id")?);
        }
        Ok(ids)
    }

    /// The ids of the rows that are pending after an UPDATE.
    ///
    /// A statement changes all of its rows alike, so the relay's own marks are known by their first row,
    /// and the others are not looked at.
    ///
    /// # Errors
    /// What can't be decoded.
    pub fn set_pending(&self, event_type: u8, data: &[u8]) -> Result<Vec<u64>, String> {
        let mut bytes = self.rows_of(event_type, data)?;
        let before_present = Present::read(&mut bytes, self.kinds.len())?;
        let after_present = Present::read(&mut bytes, self.kinds.len())?;
        let mut ids = Vec::new();
        let mut first = true;
        while !bytes.0.is_empty() {
            let before = self.image(&mut bytes, &before_present)?;
            let after = self.image(&mut bytes, &after_present)?;
            let was_pending = before.status.is_none_or(|status| status == PENDING);
            if first && was_pending && after.status == Some(SENT) {
                break;
            }
            first = false;
            if after.status == Some(PENDING) {
                let id = after.id.or(before.id);
                ids.push(id.ok_or("a row image without its id")?);
            }
        }
        Ok(ids)
    }

    /// What follows the head of a row event, from the columns' bitmaps on.
    fn rows_of<'a>(&self, event_type: u8, data: &'a [u8]) -> Result<Bytes<'a>, String> {
        let mut bytes = Bytes(data);
        // Table id and flags.
        bytes.take(8)?;
        if has_extra_data(event_type) {
            let length = bytes.length(2)?;
            bytes.take(length.saturating_sub(2))?;
        }
        if bytes.packed()? != self.kinds.len() {
            return Err("a row event of another number of columns than its table map".into());
        }
        Ok(bytes)
    }

    /// Passes over a row image.
    fn image(&self, bytes: &mut Bytes<'_>, present: &Present<'_>) -> Result<Image, String> {
        // Without any column it would have no length, and there would be no end of them.
        if present.count == 0 {
            return Err("row images without any column".into());
        }
        let nulls = bytes.take(present.count.div_ceil(8))?;
        let mut image = Image::default();
        let mut place = 0;
        for (column, kind) in self.kinds.iter().enumerate() {
            if !present.has(column) {
                continue;
            }
            let is_null = bit(nulls, place);
            place += 1;
            if is_null {
                continue;
            }
            match *kind {
                Kind::Integer(length) => {
                    let value = bytes.integer(length)?;
                    if column == self.columns.id {
                        image.id = Some(value);
                    } else if column == self.columns.status {
                        image.status = Some(value);
                    }
                }
                Kind::Fixed(length) => {
                    bytes.take(length)?;
                }
                Kind::Prefixed(prefix) => {
                    let length = bytes.length(prefix)?;
                    bytes.take(length)?;
                }
            }
        }
        Ok(image)
    }
}

const PENDING: u64 = 1;
const SENT: u64 = 2;

/// Row events of the second version have a length and data of the server's own before the columns.
fn has_extra_data(event_type: u8) -> bool {
    matches!(event_type, 30..=32)
}

/// What is wanted of a row image; `None` is absent.
#[derive(Default)]
struct Image {
    id: Option<u64>,
    status: Option<u64>,
}

/// The columns that the row images of an event have.
struct Present<'a> {
    bitmap: &'a [u8],
    count: usize,
}

impl<'a> Present<'a> {
    fn read(bytes: &mut Bytes<'a>, columns: usize) -> Result<Self, String> {
        let bitmap = bytes.take(columns.div_ceil(8))?;
        let count = (0..columns).filter(|column| bit(bitmap, *column)).count();
        Ok(Self { bitmap, count })
    }

    fn has(&self, column: usize) -> bool {
        bit(self.bitmap, column)
    }
}

fn bit(bitmap: &[u8], at: usize) -> bool {
    bitmap
        .get(at / 8)
        .is_some_and(|byte| byte >> (at % 8) & 1 == 1)
}

/// Takes a column's metadata and says how long its values are.
fn kind_of(column_type: u8, metadata: &mut Bytes<'_>) -> Result<Kind, String> {
    use code as c;
    Ok(match column_type {
        c::TINY => Kind::Integer(1),
        c::SHORT => Kind::Integer(2),
        c::INT24 => Kind::Integer(3),
        c::LONG => Kind::Integer(4),
        c::LONG_LONG => Kind::Integer(8),
        c::YEAR => Kind::Fixed(1),
        c::DATE | c::TIME => Kind::Fixed(3),
        c::TIMESTAMP => Kind::Fixed(4),
        c::DATETIME => Kind::Fixed(8),
        c::NULL => Kind::Fixed(0),
        // Their one byte of metadata is their length.
        c::FLOAT | c::DOUBLE => Kind::Fixed(metadata.length(1)?),
        c::TIMESTAMP2 => Kind::Fixed(4 + fraction(metadata)?),
        c::DATETIME2 => Kind::Fixed(5 + fraction(metadata)?),
        c::TIME2 => Kind::Fixed(3 + fraction(metadata)?),
        c::VARCHAR | c::VARCHAR_COMPRESSED => Kind::Prefixed(text_prefix(metadata.length(2)?)),
        c::BLOB
        | c::BLOB_COMPRESSED
        | c::JSON
        | c::VECTOR
        | c::GEOMETRY
        | c::TINY_BLOB
        | c::MEDIUM_BLOB
        | c::LONG_BLOB => match metadata.length(1)? {
            prefix @ 1..=4 => Kind::Prefixed(prefix),
            _ => return Err("a BLOB with a length of its own".into()),
        },
        c::BIT => {
            let (bits, bytes) = (metadata.length(1)?, metadata.length(1)?);
            Kind::Fixed(bytes + usize::from(bits > 0))
        }
        c::DECIMAL => {
            let (precision, scale) = (metadata.length(1)?, metadata.length(1)?);
            let integral = precision
                .checked_sub(scale)
                .ok_or("a DECIMAL with a scale over its precision")?;
            Kind::Fixed(decimal_bytes(integral) + decimal_bytes(scale))
        }
        c::ENUM | c::SET => {
            metadata.byte()?;
            Kind::Fixed(metadata.length(1)?)
        }
        c::STRING => string_kind(metadata.length(1)?, metadata.length(1)?),
        _ => return Err(format!("a column of the type {column_type}")),
    })
}

/// Bytes of so many digits of a second's fraction.
fn fraction(metadata: &mut Bytes<'_>) -> Result<usize, String> {
    Ok(metadata.length(1)?.div_ceil(2))
}

/// Bytes of the length of a text that may be so long.
fn text_prefix(length_max: usize) -> usize {
    if length_max > 255 { 2 } else { 1 }
}

/// Nine digits take four bytes.
fn decimal_bytes(digits: usize) -> usize {
    const REST: [usize; 9] = [0, 1, 1, 2, 2, 3, 3, 4, 4];
    digits / 9 * 4 + REST[digits % 9]
}

/// CHAR, BINARY, ENUM and SET share a type. The first byte of metadata is the real type, and two bits of
/// it belong to the length of a CHAR of more than 255 bytes.
fn string_kind(first: usize, second: usize) -> Kind {
    match u8::try_from(first) {
        Ok(code::ENUM | code::SET) => Kind::Fixed(second),
        _ => {
            let high = (first & 0x30) ^ 0x30;
            Kind::Prefixed(text_prefix(high << 4 | second))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn columns(names: &[&str]) -> Columns {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        Columns::locate(&names).unwrap()
    }

    /// A table map of `orders.outbox` with these types and this metadata.
    fn map_data(types: &[u8], metadata: &[u8]) -> Vec<u8> {
        let mut data = vec![7, 0, 0, 0, 0, 0, 1, 0];
        for name in ["orders", "outbox"] {
            data.push(u8::try_from(name.len()).unwrap());
            data.extend_from_slice(name.as_bytes());
            data.push(0);
        }
        data.push(u8::try_from(types.len()).unwrap());
        data.extend_from_slice(types);
        data.push(u8::try_from(metadata.len()).unwrap());
        data.extend_from_slice(metadata);
        data
    }

    /// payload BLOB(2), id BIGINT, status TINYINT.
    fn map() -> TableMap {
        let columns = columns(&["payload", "id", "status"]);
        TableMap::parse(&map_data(&[252, 8, 1], &[2]), columns).unwrap()
    }

    /// The head of a row event of the second version, with these bitmaps.
    fn head(bitmaps: &[u8]) -> Vec<u8> {
        let mut data = vec![7, 0, 0, 0, 0, 0, 1, 0, 2, 0, 3];
        data.extend_from_slice(bitmaps);
        data
    }

    fn image(payload: &[u8], id: u64, status: u8) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(u16::try_from(payload.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(payload);
        bytes.extend(id.to_le_bytes());
        bytes.push(status);
        bytes
    }

    #[test]
    fn an_insert_yields_the_ids_of_all_its_rows() {
        let mut data = head(&[0b111]);
        data.extend(image(b"hello", 7, 1));
        data.extend(image(b"", u64::MAX, 2));
        assert_eq!(map().inserted(30, &data), Ok(vec![7, u64::MAX]));
        let mut old = data.clone();
        old.drain(8..10);
        assert_eq!(map().inserted(23, &old), Ok(vec![7, u64::MAX]));
        data.pop();
        assert!(map().inserted(30, &data).is_err(), "cut short");
    }

    #[test]
    fn a_partial_image_is_enough_while_the_id_is_there() {
        let mut data = head(&[0b010]);
        data.push(0);
        data.extend(9_u64.to_le_bytes());
        assert_eq!(map().inserted(30, &data), Ok(vec![9]));
        let mut without = head(&[0b100]);
        without.extend([0, 1]);
        assert!(map().inserted(30, &without).is_err());
        assert!(map().inserted(30, &head(&[0])).is_ok(), "no row at all");
        let mut endless = head(&[0]);
        endless.push(0);
        assert!(map().inserted(30, &endless).is_err());
    }

    #[test]
    fn an_update_yields_the_rows_that_are_pending_after_it() {
        let update = |changes: &[(u8, u8)]| {
            let mut data = head(&[0b111, 0b111]);
            for (id, (before, after)) in (1..).zip(changes) {
                data.extend(image(b"x", id, *before));
                data.extend(image(b"x", id, *after));
            }
            map().set_pending(31, &data)
        };
        assert_eq!(update(&[(2, 1), (1, 1), (3, 2), (4, 1)]), Ok(vec![1, 2, 4]));
        assert_eq!(update(&[(1, 2), (2, 1)]), Ok(vec![]), "a mark");
        assert_eq!(update(&[(2, 1), (1, 2), (4, 1)]), Ok(vec![1, 3]));
    }

    #[test]
    fn a_minimal_update_has_its_id_in_the_image_before() {
        let mut data = head(&[0b010, 0b100]);
        data.push(0);
        data.extend(9_u64.to_le_bytes());
        data.extend([0, 1]);
        assert_eq!(map().set_pending(31, &data), Ok(vec![9]));
        *data.last_mut().unwrap() = 2;
        assert_eq!(map().set_pending(31, &data), Ok(vec![]));
    }

    #[test]
    fn values_are_passed_over_by_their_length() {
        let cases: [(&[u8], &[u8], &[u8]); 12] = [
            (&[5], &[8], &[9; 8]),
            (&[246], &[20, 6], &[9; 10]),
            (&[16], &[3, 1], &[9; 2]),
            (&[18], &[6], &[9; 8]),
            (&[19], &[3], &[9; 5]),
            (&[254], &[247, 2], &[9; 2]),
            (&[254], &[248, 8], &[9; 8]),
            (&[254], &[254, 36], &[2, 9, 9]),
            (&[254], &[0xee, 0x2c], &[2, 0, 9, 9]),
            (&[15], &[0x2c, 1], &[2, 0, 9, 9]),
            (&[15], &[255, 0], &[2, 9, 9]),
            (&[245], &[4], &[2, 0, 0, 0, 9, 9]),
        ];
        for (kind, metadata, value) in cases {
            let types = [kind, &[8, 1]].concat();
            let columns = columns(&["other", "id", "status"]);
            let map = TableMap::parse(&map_data(&types, metadata), columns).unwrap();
            let mut data = head(&[0b111]);
            for id in [5_u64, 6] {
                data.push(0);
                data.extend_from_slice(value);
                data.extend(id.to_le_bytes());
                data.push(1);
            }
            assert_eq!(
                map.inserted(30, &data),
                Ok(vec![5, 6]),
                "{kind:?} {metadata:?}"
            );
        }
    }

    /// What each type says of its length, by MySQL's sources; the first number is its bytes.
    #[test]
    fn values_have_the_length_of_their_type() {
        let cases: [(usize, u8, &[u8]); 37] = [
            (1, 1, &[]),
            (2, 2, &[]),
            (4, 3, &[]),
            (8, 8, &[]),
            (3, 9, &[]),
            (4, 4, &[4]),
            (8, 5, &[8]),
            (0, 6, &[]),
            (4, 7, &[]),
            (3, 10, &[]),
            (3, 11, &[]),
            (8, 12, &[]),
            (1, 13, &[]),
            (0, 16, &[0, 0]),
            (1, 16, &[1, 0]),
            (1, 16, &[0, 1]),
            (9, 16, &[7, 8]),
            (4, 17, &[0]),
            (5, 17, &[1]),
            (7, 17, &[6]),
            (5, 18, &[0]),
            (8, 18, &[5]),
            (3, 19, &[0]),
            (5, 19, &[4]),
            (0, 246, &[0, 0]),
            (4, 246, &[9, 0]),
            (4, 246, &[9, 9]),
            (5, 246, &[10, 0]),
            (5, 246, &[10, 9]),
            (9, 246, &[18, 8]),
            (12, 246, &[27, 9]),
            (9, 246, &[20, 0]),
            (8, 247, &[247, 8]),
            (2, 248, &[248, 2]),
            (1, 254, &[247, 1]),
            (3, 254, &[248, 3]),
            (30, 246, &[65, 30]),
        ];
        let columns = columns(&["other", "id", "status"]);
        for (length, kind, metadata) in cases {
            let map = TableMap::parse(&map_data(&[kind, 8, 1], metadata), columns).unwrap();
            let mut data = head(&[0b111]);
            data.push(0);
            data.extend(vec![0xff; length]);
            data.extend(7_u64.to_le_bytes());
            data.push(1);
            assert_eq!(map.inserted(30, &data), Ok(vec![7]), "{kind} {metadata:?}");
        }
    }

    #[test]
    fn a_text_of_more_than_255_bytes_has_a_length_of_two() {
        let columns = columns(&["other", "id", "status"]);
        let cases: [(usize, u8, &[u8]); 13] = [
            (1, 15, &[255, 0]),
            (2, 15, &[0, 1]),
            (1, 141, &[10, 0]),
            (1, 254, &[0xfe, 255]),
            (2, 254, &[0xee, 0]),
            (2, 254, &[0xde, 0]),
            (2, 254, &[0xce, 255]),
            (1, 249, &[1]),
            (2, 252, &[2]),
            (3, 250, &[3]),
            (4, 251, &[4]),
            (4, 255, &[4]),
            (4, 242, &[4]),
        ];
        for (prefix, kind, metadata) in cases {
            let map = TableMap::parse(&map_data(&[kind, 8, 1], metadata), columns).unwrap();
            let mut data = head(&[0b111]);
            data.extend([0, 3]);
            data.extend(vec![0; prefix - 1]);
            data.extend([0xff; 3]);
            data.extend(7_u64.to_le_bytes());
            data.push(1);
            assert_eq!(map.inserted(30, &data), Ok(vec![7]), "{kind} {metadata:?}");
        }
        let none = TableMap::parse(&map_data(&[252, 8, 1], &[0]), columns);
        assert!(none.is_err(), "a BLOB whose length has no bytes");
        let none = TableMap::parse(&map_data(&[252, 8, 1], &[5]), columns);
        assert!(none.is_err());
    }

    #[test]
    fn numbers_of_columns_may_be_of_more_than_one_byte() {
        for (count, packed) in [
            (250, vec![250]),
            (300, vec![252, 44, 1]),
            (300, vec![253, 44, 1, 0]),
        ] {
            let mut names = vec!["other"; count];
            names[count - 2] = "id";
            names[count - 1] = "status";
            let columns = columns(&names);
            let mut data = map_data(&[], &[]);
            data.truncate(data.len() - 2);
            data.extend(&packed);
            data.extend(vec![1; count - 2]);
            data.extend([8, 1, 0]);
            let map = TableMap::parse(&data, columns).unwrap();
            let mut event = vec![7, 0, 0, 0, 0, 0, 1, 0, 2, 0];
            event.extend(&packed);
            event.extend(vec![0xff; count.div_ceil(8)]);
            event.extend(vec![0; count.div_ceil(8)]);
            event.extend(vec![9; count - 2]);
            event.extend(0x0102_0304_0506_0708_u64.to_le_bytes());
            event.push(1);
            assert_eq!(map.inserted(30, &event), Ok(vec![0x0102_0304_0506_0708]));
        }
        let columns = columns(&["id", "status"]);
        let mut long = map_data(&[], &[]);
        long.truncate(long.len() - 2);
        long.extend([254, 2, 0, 0, 0, 0, 0, 0, 0, 8, 1, 0]);
        assert!(TableMap::parse(&long, columns).is_ok(), "eight bytes");
        for first in [251, 255] {
            let mut none = map_data(&[], &[]);
            none.truncate(none.len() - 2);
            none.extend([first, 2, 0, 8, 1, 0]);
            assert!(
                TableMap::parse(&none, columns).is_err(),
                "{first} is no length"
            );
        }
    }

    #[test]
    fn absent_and_null_columns_take_no_bytes() {
        let columns = columns(&["a", "b", "id", "status", "c"]);
        let map = TableMap::parse(&map_data(&[3, 3, 8, 1, 3], &[]), columns).unwrap();
        let mut data = head(&[0b11110]);
        data[10] = 5;
        // Of b, id, status and c the first and the last are NULL.
        data.push(0b1001);
        data.extend(7_u64.to_le_bytes());
        data.push(1);
        assert_eq!(map.inserted(30, &data), Ok(vec![7]));
        data[10] = 4;
        assert!(
            map.inserted(30, &data).is_err(),
            "a row event of another table"
        );
    }

    #[test]
    fn the_extra_data_of_a_row_event_is_passed_over() {
        for extra in [2_u8, 5] {
            let mut data = vec![7, 0, 0, 0, 0, 0, 1, 0, extra, 0];
            data.extend(vec![9; usize::from(extra) - 2]);
            data.extend([3, 0b111]);
            data.extend(image(b"x", 7, 1));
            for kind in [30, 31, 32] {
                assert_eq!(map().inserted(kind, &data), Ok(vec![7]), "{kind} {extra}");
            }
            for kind in [23, 29, 33] {
                assert_ne!(map().inserted(kind, &data), Ok(vec![7]), "{kind} {extra}");
            }
        }
    }

    #[test]
    fn columns_are_found_by_name_in_any_case() {
        assert_eq!(
            columns(&["ID", "a", "Status"]),
            columns(&["id", "b", "status"])
        );
        let none = Columns::locate(&["id".to_owned()]);
        assert_eq!(none, Err("the table has no column `status`".into()));
    }

    #[test]
    fn a_table_of_another_shape_is_refused() {
        let columns = columns(&["id", "status"]);
        assert!(TableMap::parse(&map_data(&[8, 1], &[]), columns).is_ok());
        assert!(TableMap::parse(&map_data(&[8, 1, 3], &[]), columns).is_ok());
        assert!(TableMap::parse(&map_data(&[8], &[]), columns).is_err());
        assert!(TableMap::parse(&map_data(&[8, 99], &[]), columns).is_err());
        assert!(TableMap::parse(&map_data(&[8, 252], &[]), columns).is_err());
        assert!(TableMap::parse(&map_data(&[8, 252], &[9]), columns).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_yield_more_ids_than_there_are_bytes(
            types in proptest::collection::vec(any::<u8>(), 3),
            metadata in proptest::collection::vec(any::<u8>(), 0..8),
            data in proptest::collection::vec(any::<u8>(), 0..400),
            event_type in 23_u8..33,
        ) {
            let columns = columns(&["id", "status", "payload"]);
            let anything = TableMap::parse(&data, columns);
            let map = TableMap::parse(&map_data(&types, &metadata), columns);
            for map in anything.into_iter().chain(map) {
                for ids in [map.inserted(event_type, &data), map.set_pending(event_type, &data)] {
                    prop_assert!(ids.unwrap_or_default().len() <= data.len());
                }
            }
        }
    }
}
