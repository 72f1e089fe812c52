const { connect, StringCodec } = require('nats');

async function main() {
  // Connect to NATS
  const nc = await connect({ servers: 'nats://localhost:4222' });
  
  // Access JetStream
  const js = nc.jetstream();
  const sc = StringCodec();
  
  // Create consumer
  const consumer = await js.consumers.get(
    'postgres_replication',
    'user_processor'
  );
  
  // Consume messages
  const messages = await consumer.consume();
  
  console.log('Listening for user events...');
  
  for await (const msg of messages) {
    const data = JSON.parse(sc.decode(msg.data));
    
    // Process the event
    if (data.Insert) {
      console.log('New record:', data.Insert);
    } else if (data.Update) {
      console.log('Updated record:', data.Update);
    } else if (data.Delete) {
      console.log('Deleted record:', data.Delete);
    }
    
    // Acknowledge processing
    msg.ack();
  }
}

main().catch(console.error);
