use std::io::Read;
#[tokio::main]
async fn main() {
    let mut code=String::new(); std::io::stdin().read_to_string(&mut code).unwrap();
    let t=std::time::Instant::now();
    let e=interpreter::Engine::start(interpreter::EngineConfig{tree:"build/tree".into(),preload:interpreter::Preload::for_code(&code),max_concurrency:4,max_queue:64,spares:1,limits:Default::default()}).await.unwrap();
    let d=t.elapsed();
    let r=protocol::CellRequest{code,input_data:None,limits:e.limits()};
    for _ in 0..3 {
    let t=std::time::Instant::now();
    let o=e.run(&r,&mut |_|{}).await;
    println!("{} images {}", serde_json::to_string_pretty(&o.result).unwrap(), o.images.len());
    println!("start {d:?} run {:?}",t.elapsed());
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
}
