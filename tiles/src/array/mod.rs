//! Arrays: elementwise functions, strided copies, sums, gathers.

pub mod array_copy;
pub mod array_unary;
pub mod array_zip;
pub mod array_select;
pub mod array_row_sum;
pub mod array_column_sum;
pub mod array_gather;
pub mod array_scatter_add;
pub mod array_row_max;
pub mod array_compare;
pub mod array_segment_add;
pub mod flat_copy;
pub mod flat_sum;
pub mod flat_zip;
