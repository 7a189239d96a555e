"""The reference behind FastAPI, as a user would write it: serving_theirs.py WEIGHTS PORT."""

import sys
from typing import Any

import cv2
import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, UploadFile
from ultralytics import YOLO


def main() -> None:
    model = YOLO(sys.argv[1])
    model.predict(np.zeros((640, 640, 3), np.uint8), imgsz=640, verbose=False)  # the first one is slow
    app = FastAPI()

    @app.post("/predict")
    def predict(file: UploadFile) -> dict[str, Any]:  # in a thread; the reference lets one at a time compute
        image = cv2.imdecode(np.frombuffer(file.file.read(), np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise HTTPException(400, "this is no image")
        found = model.predict(image, imgsz=640, verbose=False)[0].boxes
        columns = (found.xyxy.tolist(), found.conf.tolist(), found.cls.tolist())
        rows = [
            {"box_xyxy": box, "score": score, "label": int(label), "name": model.names[int(label)]}
            for box, score, label in zip(*columns, strict=True)
        ]
        return {"detections": rows}

    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error", access_log=False)


if __name__ == "__main__":
    main()
