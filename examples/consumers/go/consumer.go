package main

import (
    "encoding/json"
    "fmt"
    "log"
    
    "github.com/nats-io/nats.go"
)

func main() {
    // Connect to NATS
    nc, err := nats.Connect("nats://localhost:4222")
    if err != nil {
        log.Fatal(err)
    }
    defer nc.Close()
    
    // Access JetStream
    js, err := nc.JetStream()
    if err != nil {
        log.Fatal(err)
    }
    
    // Subscribe with durable consumer
    _, err = js.Subscribe(
        "postgres.public.users.*",
        func(msg *nats.Msg) {
            var data map[string]interface{}
            json.Unmarshal(msg.Data, &data)
            
            fmt.Printf("Received: %+v\n", data)
            
            // Acknowledge processing
            msg.Ack()
        },
        nats.Durable("user_processor"),
        nats.BindStream("postgres_replication"),
    )
    if err != nil {
        log.Fatal(err)
    }
    
    fmt.Println("Listening for user events...")
    
    // Keep running
    select {}
}
