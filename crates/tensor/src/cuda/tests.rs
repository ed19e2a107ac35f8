//! What a machine without a GPU can tell.

use crate::{DType, Device, ErrorKind, Tensor};

#[test]
fn a_device_that_is_not_there_is_a_clear_error() {
    let t = Tensor::ones(&[3], DType::F32, &Device::Cpu).unwrap();
    if flashlin_cuda::devices().is_ok_and(|all| !all.is_empty()) {
        assert_eq!(t.to_device(&Device::Cuda(0)).unwrap().to_vec::<f32>().unwrap(), [1.0; 3]);
        return;
    }
    for refused in [t.to_device(&Device::Cuda(0)), Tensor::zeros(&[2], DType::BF16, &Device::Cuda(0))] {
        let e = refused.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}");
        assert!(e.to_string().contains("driver"), "{e}");
    }
}

#[test]
fn a_tensor_of_the_host_has_no_device_address() {
    let t = Tensor::ones(&[3], DType::F32, &Device::Cpu).unwrap();
    assert!(t.device_address().unwrap_err().to_string().contains("of the host"));
    assert_eq!(t.to_device(&Device::Cpu).unwrap().to_vec::<f32>().unwrap(), [1.0; 3]);
}

#[test]
fn a_recording_and_its_places_need_a_gpu() {
    use super::{Place, record};
    let e = record::<(), crate::Error>(&Device::Cpu, || Ok(())).unwrap_err();
    assert!(e.to_string().contains("device cpu"), "{e}");
    let t = Tensor::ones(&[3], DType::F32, &Device::Cpu).unwrap();
    assert!(Place::of(t).unwrap_err().to_string().contains("of the host"));
}

#[test]
fn products_are_exact_unless_asked() {
    use super::{Products, products, set_products};
    assert_eq!(products(), Products::F32);
    set_products("tf32".parse().unwrap());
    assert_eq!(products(), Products::Tf32);
    set_products(Products::F32);
    assert!("bf16".parse::<Products>().unwrap_err().to_string().contains("expected f32 or tf32"));
}
