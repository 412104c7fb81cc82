use super::*;
use proptest::prelude::*;

#[test]
fn bytes_of_shapes() {
    let bytes = |shape: &[u32], data_type, order| ShardLayout::new(shape, data_type, order).unwrap().bytes();
    let square = Order::Tiles(Tile::SQUARE);
    // The weight of upstream's recipe: 48 x 96 tiles.
    assert_eq!(bytes(&[1, 1536, 3072], DataType::Bfloat8B, square), 48 * 96 * 1088);
    assert_eq!(bytes(&[1, 1, 50, 70], DataType::Bfloat4B, square), 2 * 3 * 576);
    assert_eq!(bytes(&[5, 7], DataType::Bfloat16, Order::Rows { multiple: 1 }), 70);
    assert_eq!(bytes(&[8, 40], DataType::Bfloat16, Order::Rows { multiple: 16 }), 8 * 48 * 2);
    assert_eq!(bytes(&[7], DataType::Uint8, square), 1024);
    assert_eq!(bytes(&[], DataType::Float32, Order::Rows { multiple: 1 }), 4);
}

#[test]
fn what_cannot_be_is_refused() {
    let new = |shape: &[u32], data_type, order| ShardLayout::new(shape, data_type, order).unwrap_err();
    let (rows, tiles) = (Order::Rows { multiple: 1 }, Order::Tiles(Tile::SQUARE));
    assert_eq!(new(&[2, 0], DataType::Float32, rows), ShardError::Empty(vec![2, 0]));
    assert_eq!(new(&[2, 2], DataType::Bfloat8B, rows), ShardError::NeedsTiles(DataType::Bfloat8B));
    let huge = vec![u32::MAX; 4];
    assert_eq!(new(&huge, DataType::Bfloat4B, tiles), ShardError::TooLarge(huge.clone()));
    assert_eq!(new(&[1], DataType::Uint8, Order::Rows { multiple: 0 }), ShardError::ZeroMultiple);
}

fn orders() -> impl Strategy<Value = Order> {
    prop_oneof![
        (1_u32..20).prop_map(|multiple| Order::Rows { multiple }),
        (0_u32..6, 1_u32..3)
            .prop_map(|(height, width)| { Order::Tiles(Tile::new(1 << height, 16 * width).unwrap()) }),
    ]
}

proptest! {
    #[test]
    fn values_come_back(shape in proptest::collection::vec(1_u32..40, 0..4), order in orders()) {
        let layout = ShardLayout::new(&shape, DataType::Float32, order).unwrap();
        let values: Vec<f32> = (0..layout.elements()).map(|index| index as f32 + 1.0).collect();
        let bytes = layout.pack(&values, Rounding::Host);
        prop_assert_eq!(layout.unpack(&bytes), values.clone());
        // All else is zeros.
        let kept = bytes.as_chunks::<4>().0.iter().filter(|bytes| **bytes != [0; 4]).count();
        prop_assert_eq!(kept, values.len());
        let whole: Vec<u32> = (0..layout.elements() as u32).map(|index| index % 251 + 1).collect();
        for data_type in [DataType::Uint8, DataType::Uint16, DataType::Int32] {
            let layout = ShardLayout::new(&shape, data_type, order).unwrap();
            prop_assert_eq!(layout.unpack_integers(&layout.pack_integers(&whole)), whole.clone());
        }
        if let Order::Tiles(_) = order {
            // Small integers are exact where 16 neighbours are of a size.
            let layout = ShardLayout::new(&shape, DataType::Bfloat8B, order).unwrap();
            let values: Vec<f32> = whole.iter().map(|&value| (value % 63 + 64) as f32).collect();
            prop_assert_eq!(layout.unpack(&layout.pack(&values, Rounding::Host)), values);
        }
    }
}
