// The families and the table of their kernels, included by main.rs.

#[allow(dead_code, unused_variables, unused_mut, unused_unsafe, unused_imports, unsafe_op_in_unsafe_fn)]
mod activation;
#[allow(dead_code, unused_variables, unused_mut, unused_unsafe, unused_imports, unsafe_op_in_unsafe_fn)]
mod array;
#[allow(dead_code, unused_variables, unused_mut, unused_unsafe, unused_imports, unsafe_op_in_unsafe_fn)]
mod attention;
#[allow(dead_code, unused_variables, unused_mut, unused_unsafe, unused_imports, unsafe_op_in_unsafe_fn)]
mod conv;
#[allow(dead_code, unused_variables, unused_mut, unused_unsafe, unused_imports, unsafe_op_in_unsafe_fn)]
mod decay;
#[allow(dead_code, unused_variables, unused_mut, unused_unsafe, unused_imports, unsafe_op_in_unsafe_fn)]
mod delta;
#[allow(dead_code, unused_variables, unused_mut, unused_unsafe, unused_imports, unsafe_op_in_unsafe_fn)]
mod gate;
#[allow(dead_code, unused_variables, unused_mut, unused_unsafe, unused_imports, unsafe_op_in_unsafe_fn)]
mod linear;
#[allow(dead_code, unused_variables, unused_mut, unused_unsafe, unused_imports, unsafe_op_in_unsafe_fn)]
mod loss;
#[allow(dead_code, unused_variables, unused_mut, unused_unsafe, unused_imports, unsafe_op_in_unsafe_fn)]
mod norm;
#[allow(dead_code, unused_variables, unused_mut, unused_unsafe, unused_imports, unsafe_op_in_unsafe_fn)]
mod optim;
#[allow(dead_code, unused_variables, unused_mut, unused_unsafe, unused_imports, unsafe_op_in_unsafe_fn)]
mod rope;
#[allow(dead_code, unused_variables, unused_mut, unused_unsafe, unused_imports, unsafe_op_in_unsafe_fn)]
mod tile;

/// Entry, module, and the module's syntax tree.
type Kernel = (&'static str, &'static str, fn() -> Module);

const KERNELS: &[Kernel] = &[
    ("array_copy", "array_copy", array::array_copy::array_copy::__module_ast_self),
    ("array_unary", "array_unary", array::array_unary::array_unary::__module_ast_self),
    ("array_zip", "array_zip", array::array_zip::array_zip::__module_ast_self),
    ("array_select", "array_select", array::array_select::array_select::__module_ast_self),
    ("array_row_sum", "array_row_sum", array::array_row_sum::array_row_sum::__module_ast_self),
    ("array_column_sum", "array_column_sum", array::array_column_sum::array_column_sum::__module_ast_self),
    ("array_gather", "array_gather", array::array_gather::array_gather::__module_ast_self),
    ("array_scatter_add", "array_scatter_add", array::array_scatter_add::array_scatter_add::__module_ast_self),
    ("array_row_max", "array_row_max", array::array_row_max::array_row_max::__module_ast_self),
    ("array_compare", "array_compare", array::array_compare::array_compare::__module_ast_self),
    ("array_segment_add", "array_segment_add", array::array_segment_add::array_segment_add::__module_ast_self),
    ("flat_copy", "flat_copy", array::flat_copy::flat_copy::__module_ast_self),
    ("flat_sum", "flat_sum", array::flat_sum::flat_sum::__module_ast_self),
    ("flat_zip", "flat_zip", array::flat_zip::flat_zip::__module_ast_self),
    ("attention_fwd", "fwd", attention::fwd::fwd::__module_ast_self),
    ("attention_dq", "dq", attention::dq::dq::__module_ast_self),
    ("attention_dkv", "dkv", attention::dkv::dkv::__module_ast_self),
    ("attention_step", "step", attention::step::step::__module_ast_self),
    ("attention_merge", "merge", attention::merge::merge::__module_ast_self),
    ("conv_fwd", "conv_fwd", conv::conv_fwd::conv_fwd::__module_ast_self),
    ("conv_state", "conv_state", conv::conv_state::conv_state::__module_ast_self),
    ("conv_dz", "conv_dz", conv::conv_dz::conv_dz::__module_ast_self),
    ("conv_dw", "conv_dw", conv::conv_dw::conv_dw::__module_ast_self),
    ("conv_dx", "conv_dx", conv::conv_dx::conv_dx::__module_ast_self),
    ("conv_dstate", "conv_dstate", conv::conv_dstate::conv_dstate::__module_ast_self),
    ("conv_rows_fwd", "conv_rows_fwd", conv::conv_rows_fwd::conv_rows_fwd::__module_ast_self),
    ("conv_rows_bwd", "conv_rows_bwd", conv::conv_rows_bwd::conv_rows_bwd::__module_ast_self),
    ("conv_step", "conv_step", conv::conv_step::conv_step::__module_ast_self),
    ("cross_entropy", "cross_entropy", loss::cross_entropy::cross_entropy::__module_ast_self),
    ("sum_squares", "sum_squares", optim::sum_squares::sum_squares::__module_ast_self),
    ("adamw_decide", "adamw_decide", optim::adamw_decide::adamw_decide::__module_ast_self),
    ("adamw_update", "adamw_update", optim::adamw_update::adamw_update::__module_ast_self),
    ("norm_fwd", "fwd", norm::fwd::fwd::__module_ast_self),
    ("norm_bwd", "bwd", norm::bwd::bwd::__module_ast_self),
    ("norm_any_fwd", "norm_any_fwd", norm::norm_any_fwd::norm_any_fwd::__module_ast_self),
    ("norm_any_bwd", "norm_any_bwd", norm::norm_any_bwd::norm_any_bwd::__module_ast_self),
    ("column_sum", "column_sum", norm::column_sum::column_sum::__module_ast_self),
    ("swiglu_fwd", "swiglu", activation::swiglu::swiglu::__module_ast_self),
    ("swiglu_bwd", "swiglu_bwd", activation::swiglu_bwd::swiglu_bwd::__module_ast_self),
    ("act_fwd", "act_fwd", activation::act_fwd::act_fwd::__module_ast_self),
    ("act_bwd", "act_bwd", activation::act_bwd::act_bwd::__module_ast_self),
    ("glu_fwd", "glu_fwd", activation::glu_fwd::glu_fwd::__module_ast_self),
    ("glu_bwd", "glu_bwd", activation::glu_bwd::glu_bwd::__module_ast_self),
    ("decay_gate_fwd", "decay_gate_fwd", gate::decay_gate_fwd::decay_gate_fwd::__module_ast_self),
    ("decay_gate_bwd", "decay_gate_bwd", gate::decay_gate_bwd::decay_gate_bwd::__module_ast_self),
    ("thin_linear", "thin_linear", linear::thin_linear::thin_linear::__module_ast_self),
    ("thin_glu", "thin_glu", linear::thin_glu::thin_glu::__module_ast_self),
    ("rope", "rope", rope::rope::rope::__module_ast_self),
    ("decay_cumsum", "cumsum", decay::cumsum::cumsum::__module_ast_self),
    ("decay_fwd", "fwd", decay::fwd::fwd::__module_ast_self),
    ("decay_out", "out", decay::out::out::__module_ast_self),
    ("decay_dstate", "dstate", decay::dstate::dstate::__module_ast_self),
    ("decay_bwd", "bwd", decay::bwd::bwd::__module_ast_self),
    ("delta_gates", "gates_", delta::gates::gates_::__module_ast_self),
    ("delta_intra", "intra", delta::intra::intra::__module_ast_self),
    ("delta_join", "join", delta::join::join::__module_ast_self),
    ("delta_through", "through", delta::through::through::__module_ast_self),
    ("group_sum", "group_sum", decay::group_sum::group_sum::__module_ast_self),
    ("decay_join", "join", decay::join::join::__module_ast_self),
    ("delta_fwd", "fwd", delta::fwd::fwd::__module_ast_self),
    ("delta_dstate", "dstate", delta::dstate::dstate::__module_ast_self),
    ("delta_step", "step", delta::step::step::__module_ast_self),
    ("delta_bwd", "bwd", delta::bwd::bwd::__module_ast_self),
];
