import asyncio
import json
from nats.aio.client import Client as NATS

async def main():
    # Connect to NATS
    nc = NATS()
    await nc.connect("nats://localhost:4222")
    
    # Access JetStream
    js = nc.jetstream()
    
    # Define message handler
    async def handler(msg):
        data = json.loads(msg.data.decode())
        
        # Process the event
        if 'Insert' in data:
            print(f"New record: {data['Insert']}")
        elif 'Update' in data:
            print(f"Updated record: {data['Update']}")
        elif 'Delete' in data:
            print(f"Deleted record: {data['Delete']}")
        
        # Acknowledge processing
        await msg.ack()
    
    # Create durable consumer
    await js.subscribe(
        "postgres.public.users.*",  # Subject pattern
        cb=handler,
        durable="user_processor",  # Durable name
        stream="postgres_replication"
    )
    
    print("Listening for user events...")
    
    # Keep running
    while True:
        await asyncio.sleep(1)

if __name__ == "__main__":
    asyncio.run(main())
